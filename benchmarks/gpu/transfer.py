"""A batch of images on its way to the device: as the loaders send it, from pinned memory, and as bytes."""

import time

import torch

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.timing import synchronize

REPEATS = 5


def findings(settings: Settings) -> Findings:
    """Yields for each way the milliseconds of a copy, and those that the host waits for it."""
    rows, size = (2, 64) if settings.tiny else (32, 768)
    pixels = torch.randn(rows, 3, size, size)
    levels = torch.randint(256, pixels.shape, dtype=torch.uint8)

    def pinned(images: torch.Tensor) -> torch.Tensor:
        return images if settings.tiny else images.pin_memory()

    ways = (
        ("float32, pageable", pixels, False),
        ("float32, pinned", pinned(pixels), True),
        ("uint8, pinned", pinned(levels), True),
    )
    for case, images, asynchronous in ways:
        for _ in range(2):
            images.to(settings.device)
        synchronize(settings.device)
        started = time.perf_counter()
        for _ in range(REPEATS):
            images.to(settings.device, non_blocking=asynchronous)
        waited = time.perf_counter() - started
        synchronize(settings.device)
        took = time.perf_counter() - started
        milliseconds = {"milliseconds": took / REPEATS * 1e3, "host_milliseconds": waited / REPEATS * 1e3}
        yield {"case": case, "bytes": images.nbytes, **milliseconds}
