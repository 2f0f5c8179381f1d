"""What is drawn from a split: whole samples, or pieces of conversations, with the tokens they become."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """Sample number `sample` of a store; of a conversation that is split, its turns from the first up to the second."""

    sample: int
    turns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Items:
    """The items of one split, n of them: samples, turns (first and last; 0 and -1 for all of them) and tokens [n].

    `counts` says what became of the samples that are not there as they are: "split" into several items, "truncated" by
    some turns or the end of a caption (both may be so of one), "dropped" as too long, "bad (<reason>)".
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
        """Every one of these samples once, whole, whatever its length."""
        count = len(samples)
        numbers = np.arange(samples.start, samples.stop, dtype=np.int64)
        return cls(numbers, np.zeros(count, dtype=np.int32), np.full(count, -1, dtype=np.int32), None)
