"""Scores trained cells: on the split `test` with its controls, and on the tasks of the comparison."""
