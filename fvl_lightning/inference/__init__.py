"""A saved model in use: generation, conversations, request files and the encoder by itself."""
