"""Source formats of image-text data for `fvl shards build`, one file per format."""
