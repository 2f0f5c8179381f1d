"""Data for the models: shards, sources and the way from both to batches. Imports only fvl_lightning.core."""
