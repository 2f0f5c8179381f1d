"""Language models: embeddings [B, S, D] -> hidden states [B, S, D]. One file per registered name."""
