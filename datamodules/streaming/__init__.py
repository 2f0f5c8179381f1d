"""Shards read once from front to back, for sets too large or too remote to index."""
