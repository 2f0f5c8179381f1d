"""Shards built from a source, in parallel and resumable."""
