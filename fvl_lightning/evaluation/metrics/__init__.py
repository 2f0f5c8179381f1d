"""Metrics of answers, one file a family; the registry slot `metric` holds them by name."""
