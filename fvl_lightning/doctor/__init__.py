"""Checks of an experiment before it takes a machine: configuration, model, data, memory, one batch."""
