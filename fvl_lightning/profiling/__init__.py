"""Memory, FLOPs and batch sizes of a step, found without a device and without values."""
