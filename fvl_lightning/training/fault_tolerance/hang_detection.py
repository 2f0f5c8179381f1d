"""What the ranks of a training tell each other of where they are, and who of them keeps the others waiting.

Ranks make the same steps and wait for each other in each of them. So a rank that has gone, is frozen or hangs keeps all
others waiting, in a call that nothing interrupts; who it is can only be told by comparing how far each has come.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from fvl_lightning.core.errors import UserError

LONG = 10
"""A checkpoint and the first step of a process may take so many times as long as anything else."""
MAX_NAMED_RANKS = 8
"""Ranks that a sentence rank_names."""


class Phase(IntEnum):
    """Where in the course of a batch a rank is; the validation after a batch counts to the next one."""

    OUTSIDE = -1
    VALIDATING = 0
    SUMMING_UP = 1
    LOADING = 2
    FORWARD = 3
    BACKWARD = 4
    UPDATING = 5
    SAVING = 6

    @property
    def words(self) -> str:
        """What the rank is doing."""
        return {
            Phase.OUTSIDE: "before the first step or after the last",
            Phase.VALIDATING: "validating",
            Phase.SUMMING_UP: "adding up the validation",
            Phase.LOADING: "waiting for its next batch",
            Phase.FORWARD: "in the forward pass",
            Phase.BACKWARD: "in the backward pass",
            Phase.UPDATING: "at the end of the step",
            Phase.SAVING: "saving a checkpoint",
        }[self]


@dataclass(frozen=True)
class TrainingProgress:
    """Where a rank is."""

    batch: int = 0
    """Batches that it is done with."""
    phase: Phase = Phase.OUTSIDE
    step: int = 0
    """The optimiser step under way, counted from 1; 0 outside of them."""
    fresh: bool = False
    """Whether its process has yet to end a step."""

    @property
    def patience(self) -> float:
        """How many times as long as usual it may take from here to what comes next."""
        if self.phase is Phase.OUTSIDE:
            return float("inf")  # shards, features and models may be of any size
        return LONG if self.fresh or self.phase is Phase.SAVING else 1


@dataclass(frozen=True)
class RankStatus:
    """What a rank tells the others."""

    tick: int = 0
    """Rises as long as its process lives."""
    beat: int = 0
    """Rises whenever it gets something done."""
    place: TrainingProgress = TrainingProgress()
    trouble: str = ""
    """The error for which it is about to end."""

    def text(self) -> str:
        """As it is told."""
        place = self.place
        return json.dumps([self.tick, self.beat, self.trouble, place.batch, place.phase, place.step, place.fresh])

    @classmethod
    def read(cls, text: bytes | str) -> "RankStatus":
        """The line that was told; the first one where nothing was yet."""
        if not text:
            return cls()
        tick, beat, trouble, batch, phase, step, fresh = json.loads(text)
        return cls(tick, beat, TrainingProgress(batch, Phase(phase), step, fresh), trouble)


class PeerError(UserError):
    """What went wrong went wrong on other ranks than this one."""

    def __init__(self, words: str, ranks: Sequence[int] = (0,), step: int = 0) -> None:
        super().__init__(words)
        self.ranks, self.step = list(ranks), step


class PeerFailedError(PeerError):
    """Another rank has failed, and says why itself."""


class LostRankError(PeerError):
    """Ranks that have died or hang: the training cannot go on, and can be started again from its last checkpoint."""

    spoken = True
    """Whether this rank is the one that says so for all."""


@dataclass(frozen=True)
class Diagnosis:
    """Which ranks keep the others waiting."""

    ranks: list[int]
    what: str
    """Such as "has not answered for 1800 s"."""
    line: RankStatus
    """The last one of the first of these ranks."""
    alive: bool = False
    """Whether they are still heard of."""

    def error(self, rank: int, world_size: int) -> LostRankError:
        """It as an error of `rank`; the first one that is not to blame speaks."""
        others = [other for other in range(world_size) if other not in self.ranks] or [0]
        place = self.line.place
        where = f"step {place.step}: " if place.step else ""
        heard = "" if self.alive else "last heard of "
        words = (
            f"{where}{rank_names(self.ranks)} {self.what} ({heard}{place.phase.words}); all ranks end, the last "
            "checkpoint is kept, and the same command with `--resume` goes on from it"
        )
        error = LostRankError(words, self.ranks, place.step)
        error.spoken = rank == others[0]
        return error


def rank_names(ranks: Collection[int]) -> str:
    """ "rank 1", or "ranks 1, 3 and 5 more"."""
    told = ", ".join(map(str, sorted(ranks)[:MAX_NAMED_RANKS]))
    return f"rank{'s' if len(ranks) > 1 else ''} {told}" + (
        f" and {len(ranks) - MAX_NAMED_RANKS} more" if len(ranks) > MAX_NAMED_RANKS else ""
    )


class HangDetector:
    """Hears what ranks tell.

    Args:
        ranks: those it hears.
        seconds: how long nothing may be got done, and how long a rank may be silent.
    """

    def __init__(self, ranks: Iterable[int], seconds: float) -> None:
        self.seconds = seconds
        self.lines = dict.fromkeys(ranks, RankStatus())
        self._ticked = dict.fromkeys(self.lines, 0.0)
        self._moved = 0.0

    def hear(self, lines: dict[int, RankStatus], now: float) -> None:
        """Takes lines; `now` are seconds on a clock that stands still while this process does."""
        for rank, line in lines.items():
            before, self.lines[rank] = self.lines[rank], line
            if line.tick != before.tick:
                self._ticked[rank] = now
            if line.beat != before.beat:
                self._moved = now

    def silent(self, now: float) -> Diagnosis | None:
        """The ranks that have died, or whose machine has or is frozen."""
        silent = [rank for rank, ticked in self._ticked.items() if now - ticked > self.seconds]
        if not silent:
            return None
        have = "has" if len(silent) == 1 else "have"
        return Diagnosis(silent, f"{have} not answered for {self.seconds:g} s", self.lines[silent[0]])

    def stuck(self, now: float) -> Diagnosis | None:
        """The ranks that have come least far, where nothing has been got done by any of them."""
        least = min((line.place.batch, line.place.phase) for line in self.lines.values())
        last = [rank for rank, line in self.lines.items() if (line.place.batch, line.place.phase) == least]
        limit = self.seconds * max(self.lines[rank].place.patience for rank in last)
        if now - self._moved <= limit:
            return None
        have, them = ("has", "it") if len(last) == 1 else ("have", "them")
        waiting = f", and the others wait for {them}" if len(last) < len(self.lines) else ""
        return Diagnosis(last, f"{have} got nothing done for {limit:g} s{waiting}", self.lines[last[0]], alive=True)
