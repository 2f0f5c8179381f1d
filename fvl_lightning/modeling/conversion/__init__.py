"""Import of original Florence-VL checkpoints, and export of model folders for the hub."""
