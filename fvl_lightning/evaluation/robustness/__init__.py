"""Checks of what a score rests on: corrupted images, controls, biases and slices."""
