"""What image-text data of other formats looks like: one file per format, read for `fvl shards build`."""
