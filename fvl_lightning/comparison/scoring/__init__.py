"""A trained cell scored: the split `test` with its controls, and the tasks of the comparison."""
