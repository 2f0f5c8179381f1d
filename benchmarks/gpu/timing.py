"""Time that a device takes."""

import time
from collections.abc import Callable

import torch

WARM_UP = 2
"""Runs that are not timed."""


def synchronize(device: str) -> None:
    """Waits until the device has done what it was given."""
    torch.get_device_module(device).synchronize()


def milliseconds(run: Callable[[], object], repeats: int, device: str) -> float:
    """Returns the mean time of a run on the device, over `repeats` runs that do not wait for each other."""
    for _ in range(WARM_UP):
        run()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - started) / repeats * 1e3
