"""Projectors: [I, N, D_out] of the fusion -> [I, N, D] of the language model. One file per registered name."""
