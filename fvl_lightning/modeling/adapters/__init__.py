"""Adapters: their folders, and their layers inside a model."""
