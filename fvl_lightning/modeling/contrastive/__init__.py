"""Images and captions as vectors, and the contrastive loss between them (arXiv 2412.04424, section 4)."""
