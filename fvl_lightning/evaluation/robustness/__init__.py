"""Robustness of scores: corrupted images, controls, biases and slices."""
