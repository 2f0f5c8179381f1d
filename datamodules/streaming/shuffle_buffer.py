"""Shuffles the samples of a stream within a buffer, epoch by epoch."""

import random
from collections.abc import Iterator
from itertools import groupby, islice

from datamodules.streaming.sample import Drawn


def shuffled_by_epoch(draws: Iterator[Drawn], block: int, seed: str) -> Iterator[Drawn]:
    """Yields the samples shuffled within blocks; all of an epoch come before the first of the next."""
    for epoch, of_epoch in groupby(draws, key=lambda drawn: drawn.visit.epoch):
        yield from shuffled(of_epoch, block, random.Random(f"{seed} {epoch}"))


def shuffled(draws: Iterator[Drawn], block: int, rng: random.Random) -> Iterator[Drawn]:
    """Yields samples shuffled within blocks of `block`; each comes at most 2 x block draws after it was read.

    For each sample handed out one is read into the next block, so that reading is even and `block` samples are held.
    """
    ready = list(islice(draws, block))
    while ready:
        rng.shuffle(ready)
        following: list[Drawn] = []
        while ready:
            yield ready.pop()
            following += islice(draws, 1)
        ready = following
