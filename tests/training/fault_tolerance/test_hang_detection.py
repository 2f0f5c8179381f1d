"""Hang detection: which rank keeps the others waiting, by the statuses that they publish."""

import pytest

from fvl_lightning.training.fault_tolerance.hang_detection import (
    SLOW_PHASE_FACTOR,
    Diagnosis,
    HangDetector,
    Phase,
    RankStatus,
    TrainingProgress,
    rank_names,
)

SECONDS = 10.0


def statuses(tick: int, *places: TrainingProgress, beat: int = 1) -> dict[int, RankStatus]:
    """A status of every rank."""
    return {rank: RankStatus(tick, beat, place) for rank, place in enumerate(places)}


def diagnose(*places: TrainingProgress, after: float = SECONDS + 1) -> Diagnosis | None:
    """Returns the diagnosis for ranks that answer, but have made no progress for `after` seconds."""
    detector = HangDetector(range(len(places)), SECONDS)
    detector.update(statuses(1, *places), 0.0)
    detector.update(statuses(2, *places), after)
    assert detector.find_silent(after) is None
    return detector.find_stuck(after)


def at(batch: int, phase: Phase, step: int = 7, fresh: bool = False) -> TrainingProgress:
    return TrainingProgress(batch, phase, step, fresh)


@pytest.mark.parametrize(
    ("places", "ranks"),
    [
        ([at(6, Phase.BACKWARD), at(6, Phase.LOADING)], [1]),
        ([at(6, Phase.LOADING), at(6, Phase.BACKWARD), at(6, Phase.LOADING)], [0, 2]),
        ([at(6, Phase.UPDATING), at(7, Phase.LOADING)], [0]),
        ([at(6, Phase.LOADING), at(6, Phase.VALIDATING)], [1]),
        ([at(6, Phase.SUMMING_UP), at(6, Phase.VALIDATING)], [1]),
        ([at(6, Phase.BACKWARD), at(6, Phase.BACKWARD)], [0, 1]),
    ],
)
def test_the_ranks_that_have_come_least_far(places: list[TrainingProgress], ranks: list[int]) -> None:
    diagnosis = diagnose(*places)
    assert diagnosis is not None
    assert diagnosis.ranks == ranks
    assert diagnose(*places, after=SECONDS - 1) is None


def test_whoever_gets_something_done_keeps_all_alive() -> None:
    """One rank's validation is longer than the other's."""
    detector, place = HangDetector(range(2), SECONDS), at(6, Phase.VALIDATING)
    for second in range(100):
        detector.update(
            {0: RankStatus(second, second, place), 1: RankStatus(second, 1, at(6, Phase.SUMMING_UP))}, float(second)
        )
        assert detector.find_stuck(float(second)) is None


@pytest.mark.parametrize("place", [at(0, Phase.LOADING, 1, fresh=True), at(6, Phase.SAVING)])
def test_the_first_step_and_checkpoints_may_take_longer(place: TrainingProgress) -> None:
    assert diagnose(place, at(7, Phase.BACKWARD), after=SLOW_PHASE_FACTOR * SECONDS - 1) is None
    assert diagnose(place, at(7, Phase.BACKWARD), after=SLOW_PHASE_FACTOR * SECONDS + 1) is not None


def test_outside_of_the_steps_anything_may_take_long_but_nobody_may_be_silent() -> None:
    assert diagnose(TrainingProgress(), TrainingProgress(), after=1e6) is None
    detector = HangDetector(range(2), SECONDS)
    detector.update({0: RankStatus(1), 1: RankStatus(1)}, 1.0)
    detector.update({0: RankStatus(2), 1: RankStatus(1)}, SECONDS + 0.9)
    assert detector.find_silent(SECONDS + 0.9) is None
    detector.update({0: RankStatus(3), 1: RankStatus(1)}, SECONDS + 1.1)
    diagnosis = detector.find_silent(SECONDS + 1.1)
    assert diagnosis is not None
    assert diagnosis.ranks == [1]


def test_the_sentence() -> None:
    diagnosis = diagnose(at(6, Phase.BACKWARD), at(6, Phase.LOADING))
    assert diagnosis is not None
    error = diagnosis.error(0, 2)
    assert str(error) == (
        "step 7: rank 1 has got nothing done for 10 s, and the others wait for it (waiting for its next batch); all "
        "ranks end, the last checkpoint is kept, and the same command with `--resume` goes on from it"
    )
    assert (error.ranks, error.step, error.is_reporter) == ([1], 7, True)
    assert not diagnosis.error(1, 2).is_reporter
    gone = Diagnosis([0, 1], "are gone", RankStatus(progress=at(6, Phase.LOADING))).error(2, 4)
    assert str(gone).startswith("step 7: ranks 0, 1 are gone (last heard of waiting for its next batch); ")
    assert gone.is_reporter
    assert rank_names(range(12)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"


def test_a_status_arrives_as_it_was_published() -> None:
    status = RankStatus(3, 4, at(6, Phase.SAVING, fresh=True), 'RuntimeError: "words"')
    assert RankStatus.from_json(status.to_json()) == status
    assert RankStatus.from_json(b"") == RankStatus()
