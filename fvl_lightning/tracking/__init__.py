"""Runs in MLflow: the store, the metrics log of a training, and the sync between them."""
