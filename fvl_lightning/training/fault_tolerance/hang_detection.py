"""Hang detection: the status that each rank publishes, and which rank keeps the others waiting.

Ranks make the same steps and wait for each other in each of them. A rank that died, is frozen or hangs therefore blocks
all others in a call that nothing interrupts. Only a comparison of how far each rank has come shows which one it is.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from fvl_lightning.core.errors import UserError

SLOW_PHASE_FACTOR = 10
"""A checkpoint, and the first step of a process, may take this many times the usual timeout."""
MAX_NAMED_RANKS = 8
"""The number of ranks that a message lists by name."""


class Phase(IntEnum):
    """The phase of a batch; a validation pass after a batch belongs to the next batch."""

    OUTSIDE = -1
    VALIDATING = 0
    SUMMING_UP = 1
    LOADING = 2
    FORWARD = 3
    BACKWARD = 4
    UPDATING = 5
    EVALUATING = 6
    SAVING = 7

    @property
    def description(self) -> str:
        """The phase as a message says it."""
        return {
            Phase.OUTSIDE: "before the first step or after the last",
            Phase.VALIDATING: "validating",
            Phase.SUMMING_UP: "adding up the validation",
            Phase.LOADING: "waiting for its next batch",
            Phase.FORWARD: "in the forward pass",
            Phase.BACKWARD: "in the backward pass",
            Phase.UPDATING: "at the end of the step",
            Phase.EVALUATING: "answering questions of tasks",
            Phase.SAVING: "saving a checkpoint",
        }[self]


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a rank through the training."""

    batch: int = 0
    """Number of finished batches."""
    phase: Phase = Phase.OUTSIDE
    step: int = 0
    """The current optimiser step, counted from 1; 0 outside of the steps."""
    fresh: bool = False
    """Whether the process has not finished its first step."""

    @property
    def timeout_factor(self) -> float:
        """The factor by which the timeout is longer in this phase."""
        if self.phase is Phase.OUTSIDE:
            return float("inf")  # shards, features and models may be of any size
        return SLOW_PHASE_FACTOR if self.fresh or self.phase is Phase.SAVING else 1


@dataclass(frozen=True)
class RankStatus:
    """The status that a rank publishes to the others."""

    tick: int = 0
    """Rises as long as the process lives."""
    beat: int = 0
    """Rises whenever the rank makes progress."""
    progress: TrainingProgress = TrainingProgress()
    error: str = ""
    """The error that is about to end the rank."""

    def to_json(self) -> str:
        """Returns the status as a JSON list."""
        at = self.progress
        return json.dumps([self.tick, self.beat, self.error, at.batch, at.phase, at.step, at.fresh])

    @classmethod
    def from_json(cls, text: bytes | str) -> "RankStatus":
        """Reads a published status; an empty text, before the first one, gives the initial status."""
        if not text:
            return cls()
        tick, beat, error, batch, phase, step, fresh = json.loads(text)
        return cls(tick, beat, TrainingProgress(batch, Phase(phase), step, fresh), error)


class PeerError(UserError):
    """A failure of other ranks than this one.

    Args:
        message: the sentence that is shown.
        ranks: the ranks that failed.
        step: the optimiser step at which they failed; 0 outside of the steps.
    """

    def __init__(self, message: str, ranks: Sequence[int] = (0,), step: int = 0) -> None:
        super().__init__(message)
        self.ranks, self.step = list(ranks), step


class PeerFailedError(PeerError):
    """Another rank failed with an error that it reports itself."""


class LostRankError(PeerError):
    """Ranks died or hang: the training cannot continue, and can be resumed from its last checkpoint."""

    is_reporter = True
    """Whether this rank reports the error for all ranks."""


@dataclass(frozen=True)
class Diagnosis:
    """The ranks that keep the others waiting."""

    ranks: list[int]
    symptom: str
    """Such as "has not answered for 1800 s"."""
    status: RankStatus
    """The last status of the first of these ranks."""
    alive: bool = False
    """Whether the ranks still publish their status."""

    def error(self, rank: int, world_size: int) -> LostRankError:
        """Returns the diagnosis as an error for `rank`; the first rank that is not to blame reports it."""
        others = [other for other in range(world_size) if other not in self.ranks] or [0]
        progress = self.status.progress
        where = f"step {progress.step}: " if progress.step else ""
        heard = "" if self.alive else "last heard of "
        message = (
            f"{where}{rank_names(self.ranks)} {self.symptom} ({heard}{progress.phase.description}); all ranks end, the "
            "last checkpoint is kept, and the same command with `--resume` goes on from it"
        )
        error = LostRankError(message, self.ranks, progress.step)
        error.is_reporter = rank == others[0]
        return error


def rank_names(ranks: Collection[int]) -> str:
    """Returns "rank 1", or "ranks 1, 3 and 5 more"."""
    names = ", ".join(map(str, sorted(ranks)[:MAX_NAMED_RANKS]))
    return f"rank{'s' if len(ranks) > 1 else ''} {names}" + (
        f" and {len(ranks) - MAX_NAMED_RANKS} more" if len(ranks) > MAX_NAMED_RANKS else ""
    )


class HangDetector:
    """Finds ranks that are silent or stuck.

    Args:
        ranks: the ranks to monitor.
        seconds: the timeout, both for progress by any rank and for a sign of life from each.
    """

    def __init__(self, ranks: Iterable[int], seconds: float) -> None:
        self.seconds = seconds
        self.statuses = dict.fromkeys(ranks, RankStatus())
        self._last_tick = dict.fromkeys(self.statuses, 0.0)
        self._last_progress = 0.0

    def update(self, statuses: dict[int, RankStatus], now: float) -> None:
        """Takes new statuses; `now` is in seconds, on a clock that stops while this process is stopped."""
        for rank, status in statuses.items():
            before, self.statuses[rank] = self.statuses[rank], status
            if status.tick != before.tick:
                self._last_tick[rank] = now
            if status.beat != before.beat:
                self._last_progress = now

    def find_silent(self, now: float) -> Diagnosis | None:
        """Returns the ranks whose process or machine died or is frozen."""
        silent = [rank for rank, ticked in self._last_tick.items() if now - ticked > self.seconds]
        if not silent:
            return None
        have = "has" if len(silent) == 1 else "have"
        return Diagnosis(silent, f"{have} not answered for {self.seconds:g} s", self.statuses[silent[0]])

    def find_stuck(self, now: float) -> Diagnosis | None:
        """Returns the ranks furthest behind, if no rank made progress within the timeout."""
        least = min((status.progress.batch, status.progress.phase) for status in self.statuses.values())
        last = [rank for rank, at in self.statuses.items() if (at.progress.batch, at.progress.phase) == least]
        limit = self.seconds * max(self.statuses[rank].progress.timeout_factor for rank in last)
        if now - self._last_progress <= limit:
            return None
        have, them = ("has", "it") if len(last) == 1 else ("have", "them")
        waiting = f", and the others wait for {them}" if len(last) < len(self.statuses) else ""
        symptom = f"{have} got nothing done for {limit:g} s{waiting}"
        return Diagnosis(last, symptom, self.statuses[last[0]], alive=True)
