"""Rows of a benchmark's files, read and turned into the questions of a task."""
