"""Inference with a saved model: generation, conversations, request files, and the encoder on its own."""
