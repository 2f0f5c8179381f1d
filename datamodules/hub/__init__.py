"""Datasets of the Hugging Face hub: addresses, files and requests."""
