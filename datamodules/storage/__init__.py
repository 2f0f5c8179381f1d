"""Shards on disk or on a remote store: paths, tar headers, the index, reading and writing."""
