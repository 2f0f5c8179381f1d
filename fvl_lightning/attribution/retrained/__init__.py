"""The worth of a source when models are trained again on subsets of the sources."""
