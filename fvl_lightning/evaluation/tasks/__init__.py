"""Tasks: benchmarks that are described in YAML, their questions, and models scored on them."""
