"""What each feature source is worth to a trained model, and the report of it."""
