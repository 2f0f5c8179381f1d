"""Checkpoints converted from the original Florence-VL, and model folders exported for the hub."""
