"""Memory, FLOPs and batch sizes of a training step, computed without a device."""
