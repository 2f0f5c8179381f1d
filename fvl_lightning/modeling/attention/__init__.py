"""Attention over packed rows without a dense mask: the kernels, and which of them a training uses."""
