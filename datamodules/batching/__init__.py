"""Samples batched: lengths, order, packing and collation."""
