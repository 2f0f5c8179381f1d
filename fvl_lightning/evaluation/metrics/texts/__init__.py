"""Comparisons of texts that several metrics use."""
