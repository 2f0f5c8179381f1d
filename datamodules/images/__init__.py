"""Decodes images safely and resizes them for the encoder."""
