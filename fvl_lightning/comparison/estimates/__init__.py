"""Estimates of a comparison before it starts: operations, memory, hours and disk."""
