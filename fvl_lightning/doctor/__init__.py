"""Checks of an experiment before a machine is asked for: configuration, model, data, memory, one batch."""
