"""Launchers of processes: the ranks of a training, and the cells of a comparison."""
