"""The items of a split: whole samples, or pieces of conversations, with their numbers of tokens."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """Sample number `sample` of a store, or of a split conversation only the turns [turns[0], turns[1])."""

    sample: int
    turns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Items:
    """The n items of one split.

    Attributes:
        samples: [n] number of the sample.
        first_turn: [n] first turn, 0 for a whole sample.
        last_turn: [n] end of the turns, -1 for a whole sample.
        tokens: [n] planned tokens; None where they were not measured.
        counts: number of changed or missing samples: "split" into several items, "truncated" (some turns or the end of
            a caption are left out), "dropped" as too long, "bad (<reason>)". A sample may be both split and truncated.
    """

    samples: NDArray[np.int64]
    first_turn: NDArray[np.int32]
    last_turn: NDArray[np.int32]
    tokens: NDArray[np.int32] | None
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Piece:
        last = int(self.last_turn[number])
        return Piece(int(self.samples[number]), None if last < 0 else (int(self.first_turn[number]), last))

    @classmethod
    def whole(cls, samples: range) -> "Items":
        """Returns one item for each of these samples, whole, regardless of its length."""
        count = len(samples)
        numbers = np.arange(samples.start, samples.stop, dtype=np.int64)
        return cls(numbers, np.zeros(count, dtype=np.int32), np.full(count, -1, dtype=np.int32), None)
