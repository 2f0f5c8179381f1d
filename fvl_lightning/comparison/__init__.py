"""A comparison: arms and seeds, planned, run, tested and reported."""
