"""Scores of trained models: generated answers, controls without the image, and what the encoder writes by itself."""
