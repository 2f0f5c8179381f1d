"""Layer 3: what a trained model is worth: generated answers, controls without the image, the encoder's own writing."""
