"""What a report says of the learning rates that were chosen, and of the test split that was read."""

from typing import Any

from fvl_lightning.comparison.report.choices import access_text, tuning_grids
from fvl_lightning.comparison.result_files.comparison import SplitAccess, Tuning

ONCE: dict[str, Any] = {
    "first": "2026-03-01T10:00:00+00:00",
    "last": "2026-03-01T11:30:00+00:00",
    "readings": 9,
    "again": {},
    "others": [],
    "earlier": [],
}


def text_of(**changes: Any) -> str:
    """The sentences about an access log, read as comparison.json has it."""
    return access_text(SplitAccess.read(ONCE | changes))


def test_a_test_split_that_every_cell_read_once() -> None:
    said = text_of()
    assert "read 9 times between 2026-03-01 10:00:00 and 2026-03-01 11:30:00 (UTC)" in said
    assert "more than once" not in said
    assert "changed after" not in said


def test_a_second_reading_of_the_same_configuration_is_no_change() -> None:
    said = text_of(again={"gated with seed 0": {"readings": 2, "configurations": 1}})
    assert "It was read more than once by gated with seed 0 (2 times)." in said
    assert "changed after" not in said


def test_a_change_after_the_test_scores_could_be_seen_is_said() -> None:
    changed = {"again": {"gated with seed 0": {"readings": 3, "configurations": 2}}}
    said = text_of(**changed)
    assert "gated with seed 0 (3 times, of 2 configurations)" in said
    assert "changed after its test scores could be seen" in said
    report = {"time": "2026-02-01T09:00:00+00:00", "changed": ["mean with seed 0"]}
    said = text_of(earlier=[report])
    assert "A report was made at 2026-02-01 09:00:00; changed since: mean with seed 0." in said
    assert "changed after its test scores could be seen" in said
    said = text_of(others=["mean/0"])
    assert "by runs that are no longer compared: mean/0." in said
    assert "changed after its test scores could be seen" in said


def test_nothing_is_said_of_readings_that_nobody_noted() -> None:
    assert access_text(SplitAccess()) == ""


TUNED: dict[str, Any] = {
    "seeds": [100, 101],
    "factors": [0.3, 1.0, 3.0],
    "metric": "accuracy/macro",
    "arms": {
        "concat": {
            "scores": {"0.3": 0.5, "1": 0.625, "3": 0.25},
            "failed": {},
            "chosen": 1.0,
            "edge": False,
            "learning_rates": {"pretrain": 0.004, "finetune": 0.003},
        },
        "gated": {
            "scores": {"0.3": 0.75, "1": 0.5, "3": None},
            "failed": {"3": "the loss is not finite"},
            "chosen": 0.3,
            "edge": True,
            "learning_rates": {"pretrain": 0.0012, "finetune": 0.0009},
        },
    },
}


def test_the_rates_are_a_table() -> None:
    (grid,) = tuning_grids(Tuning.read(TUNED))
    assert grid.header == ["arm", "x 0.3", "x 1", "x 3", "taken", "learning rates"]
    assert grid.rows == [
        ["concat", "0.500", "0.625", "0.250", "x 1", "pretrain 0.004, finetune 0.003"],
        ["gated", "0.750", "0.500", "-", "x 0.3", "pretrain 0.0012, finetune 0.0009"],
    ]
    assert "with seeds 100, 101, which no verdict uses" in grid.note
    assert "At the edge of the grid, so that a better one may lie beyond it: gated." in grid.note
    assert "gated failed with x 3: the loss is not finite." in grid.note
    assert tuning_grids(None) == []
