"""What a source is worth when models are trained again on subsets of the sources."""
