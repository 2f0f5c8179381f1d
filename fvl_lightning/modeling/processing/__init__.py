"""Processors saved with a model: text, images and padding."""
