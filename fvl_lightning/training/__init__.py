"""Layer 3: what a run needs besides the model: optimiser, freezing, run folders, cached features."""
