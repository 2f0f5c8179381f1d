"""Encoders: images [I, 3, P, P] -> {source: [I, N, D]}. One file per registered name."""
