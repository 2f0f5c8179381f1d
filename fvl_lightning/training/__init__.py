"""Training: optimiser, trainable components, LoRA, cached features, checkpoints, ranks and fault tolerance."""
