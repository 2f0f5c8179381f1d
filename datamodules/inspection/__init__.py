"""Shards inspected: checks, statistics and previews."""
