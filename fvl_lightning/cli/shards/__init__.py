"""The verbs of `fvl shards`."""
