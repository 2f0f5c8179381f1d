"""Fusions: {source: [I, N, D_source]} -> FusionOutput(features [I, N_out, D_out]). One file per registered name."""
