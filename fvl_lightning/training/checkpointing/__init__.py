"""Checkpoints: when they are written, their files, and what they hold."""
