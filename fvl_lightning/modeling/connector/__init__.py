"""Between encoder and language model: alignment of sources, image embeddings, features for inner layers."""
