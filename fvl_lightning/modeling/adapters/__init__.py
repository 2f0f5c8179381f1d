"""Adapters: their folders, and their layers in a model."""
