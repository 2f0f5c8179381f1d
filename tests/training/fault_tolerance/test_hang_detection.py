"""Who keeps the other ranks waiting, judged from what each of them tells."""

import pytest

from fvl_lightning.training.fault_tolerance.hang_detection import (
    LONG,
    Diagnosis,
    HangDetector,
    Phase,
    RankStatus,
    TrainingProgress,
    rank_names,
)

SECONDS = 10.0


def told(tick: int, *places: TrainingProgress, beat: int = 1) -> dict[int, RankStatus]:
    """A line of every rank."""
    return {rank: RankStatus(tick, beat, place) for rank, place in enumerate(places)}


def judged(*places: TrainingProgress, after: float = SECONDS + 1) -> Diagnosis | None:
    """Of ranks that answer, but have been in these places for so long."""
    judge = HangDetector(range(len(places)), SECONDS)
    judge.hear(told(1, *places), 0.0)
    judge.hear(told(2, *places), after)
    assert judge.silent(after) is None
    return judge.stuck(after)


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
    verdict = judged(*places)
    assert verdict is not None
    assert verdict.ranks == ranks
    assert judged(*places, after=SECONDS - 1) is None


def test_whoever_gets_something_done_keeps_all_alive() -> None:
    """One rank's validation is longer than the other's."""
    judge, place = HangDetector(range(2), SECONDS), at(6, Phase.VALIDATING)
    for second in range(100):
        judge.hear(
            {0: RankStatus(second, second, place), 1: RankStatus(second, 1, at(6, Phase.SUMMING_UP))}, float(second)
        )
        assert judge.stuck(float(second)) is None


@pytest.mark.parametrize("place", [at(0, Phase.LOADING, 1, fresh=True), at(6, Phase.SAVING)])
def test_the_first_step_and_checkpoints_may_take_longer(place: TrainingProgress) -> None:
    assert judged(place, at(7, Phase.BACKWARD), after=LONG * SECONDS - 1) is None
    assert judged(place, at(7, Phase.BACKWARD), after=LONG * SECONDS + 1) is not None


def test_outside_of_the_steps_anything_may_take_long_but_nobody_may_be_silent() -> None:
    assert judged(TrainingProgress(), TrainingProgress(), after=1e6) is None
    judge = HangDetector(range(2), SECONDS)
    judge.hear({0: RankStatus(1), 1: RankStatus(1)}, 1.0)
    judge.hear({0: RankStatus(2), 1: RankStatus(1)}, SECONDS + 0.9)
    assert judge.silent(SECONDS + 0.9) is None
    judge.hear({0: RankStatus(3), 1: RankStatus(1)}, SECONDS + 1.1)
    verdict = judge.silent(SECONDS + 1.1)
    assert verdict is not None
    assert verdict.ranks == [1]


def test_the_sentence() -> None:
    verdict = judged(at(6, Phase.BACKWARD), at(6, Phase.LOADING))
    assert verdict is not None
    error = verdict.error(0, 2)
    assert str(error) == (
        "step 7: rank 1 has got nothing done for 10 s, and the others wait for it (waiting for its next batch); all "
        "ranks end, the last checkpoint is kept, and the same command with `--resume` goes on from it"
    )
    assert (error.ranks, error.step, error.spoken) == ([1], 7, True)
    assert not verdict.error(1, 2).spoken
    gone = Diagnosis([0, 1], "are gone", RankStatus(place=at(6, Phase.LOADING))).error(2, 4)
    assert str(gone).startswith("step 7: ranks 0, 1 are gone (last heard of waiting for its next batch); ")
    assert gone.spoken
    assert rank_names(range(12)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"


def test_a_line_arrives_as_it_was_told() -> None:
    line = RankStatus(3, 4, at(6, Phase.SAVING, fresh=True), 'RuntimeError: "words"')
    assert RankStatus.read(line.text()) == line
    assert RankStatus.read(b"") == RankStatus()
