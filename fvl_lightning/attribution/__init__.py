"""The worth of each feature source to a trained model, and the report of it."""
