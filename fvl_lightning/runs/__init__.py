"""One training run: set-up, training, its folder, resuming and tracking."""
