"""Runs of the stage alignment_probe side by side: loss, floor, retrieval, and classifiers on the encoders' features."""
