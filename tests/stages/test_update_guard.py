"""The update guard: steps with a non-finite loss or gradient, and spikes, are skipped, logged and limited in number."""

import dataclasses
import json
import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.stages.base import Stage
from fvl_lightning.stages.update_guard import MIN_UPDATES, WINDOW_UPDATES, SkippedStep, UpdateGuard, deviations_above
from fvl_lightning.tracking.metrics_log import JsonlLogger, read_metrics
from fvl_lightning.training.step_logging import LogWindow
from tests.stages.fitting import batches_of, build_stage, fit
from tests.tiny_models import snapshot


def spoil(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, calls: Sequence[int], in_gradient: bool = False,
    factor: float = float("nan"),
) -> None:  # fmt: skip
    """The loss of these batches, counted from 0, is no number (or so many times as large); or its gradient is not."""
    original, seen = stage.compute, 0

    def compute(batch: Any) -> tuple[TokenLoss, dict[str, Any]]:
        nonlocal seen
        loss, diagnostics = original(batch)
        seen += 1
        if seen - 1 not in calls:
            return loss, diagnostics
        if in_gradient:
            total = loss.sum.clone()
            total.register_hook(lambda gradient: gradient * float("inf"))
            return dataclasses.replace(loss, sum=total), diagnostics
        return dataclasses.replace(loss, sum=loss.sum * factor), diagnostics

    monkeypatch.setattr(stage, "compute", compute)


def journalled(stage: Stage, batches: Sequence[Any], folder: Path) -> list[dict[str, Any]]:
    """Trains with a journal; its lines."""
    folder.mkdir(exist_ok=True)
    fit(stage, batches, folder, [LogWindow(1)], loggers=[JsonlLogger(folder / "metrics.jsonl")])
    return list(read_metrics(folder / "metrics.jsonl"))


class Killed(Callback):
    """Ends the training after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("in_gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_step_is_as_if_its_batch_were_not_there(
    name: str, in_gradient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights and moments: with a constant learning rate the run equals one that never saw the batch."""
    optimizer = {"name": name, "weight_decay": 0.1, "final_fraction": 1.0}
    batches = batches_of("finetune", 4)
    clean = build_stage("finetune", tmp_path, optimizer=optimizer, trainer={"max_steps": 3})
    fit(clean, [batches[0], batches[2], batches[3]], tmp_path / "clean")
    stage = build_stage("finetune", tmp_path, optimizer=optimizer, trainer={"max_steps": 4})
    spoil(stage, monkeypatch, [1], in_gradient)
    with caplog.at_level(logging.WARNING):
        lines = journalled(stage, batches, tmp_path / "spoiled")
    wanted, found = snapshot(clean.model), snapshot(stage.model)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    moments, theirs = (s.optimizers().optimizer.state_dict()["state"] for s in (clean, stage))
    assert moments.keys() == theirs.keys()
    for key in moments:
        assert all(torch.equal(moments[key][part], theirs[key][part]) for part in moments[key])
    assert stage.position == 16
    assert (int(clean.samples), int(stage.samples)) == (12, 12)
    (warning,) = [message for message in caplog.messages if "makes no update" in message]
    assert warning.startswith("step 2 makes no update, since its loss or gradient is not finite: loss ")
    assert f"samples {batches[1].keys[0]}, " in warning
    assert warning.endswith(" and 1 more")
    (note,) = [line["note"] for line in lines if "note" in line]
    assert note["skipped"] == list(batches[1].keys)
    assert [line["step"] for line in lines if "train/skipped_in_a_row" in line] == [2]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 3, 4]
    assert "NaN" not in json.dumps(lines)


def test_too_many_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"max_steps": 9, "max_skipped": 2, "checkpoint_every": 1}
    stage = build_stage("finetune", tmp_path, trainer=trainer)
    batches = batches_of("finetune", 9)
    spoil(stage, monkeypatch, [1, 2, 4, 5, 6, 7])
    with pytest.raises(ConfigError) as raised:
        fit(stage, batches, tmp_path)
    sentence = str(raised.value)
    assert sentence.startswith("step 7: no finite loss and gradient for 3 steps in a row, and trainer.max_skipped is 2")
    assert batches[6].keys[0] in sentence
    assert "\n" not in sentence
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["skipped_in_a_row"], checkpoint["position"]) == (6, 2, 24)


def test_a_resumed_run_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_stage("finetune", tmp_path, trainer={"max_steps": 2, "max_skipped": 2})
    spoil(first, monkeypatch, [0, 1])
    fit(first, batches_of("finetune", 2), tmp_path)
    second = build_stage("finetune", tmp_path, trainer={"max_steps": 4, "max_skipped": 2})
    spoil(second, monkeypatch, [0])
    with pytest.raises(ConfigError, match="step 3: no finite loss and gradient for 3 steps in a row"):
        fit(second, batches_of("finetune", 2, first=2), tmp_path, resume=tmp_path / "last.ckpt")


def test_one_bad_batch_of_an_accumulated_step_spoils_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 2, "accumulate": 2})
    batches = batches_of("finetune", 4)
    before = snapshot(stage.model)
    spoil(stage, monkeypatch, [0, 3])
    lines = journalled(stage, batches, tmp_path / "spoiled")
    assert all(torch.equal(before[key], value) for key, value in snapshot(stage.model).items())
    notes = [line["note"]["skipped"] for line in lines if "note" in line]
    assert notes == [[*batches[0].keys, *batches[1].keys], [*batches[2].keys, *batches[3].keys]]


def test_without_any_skip_it_stops_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 3, "max_skipped": 0})
    spoil(stage, monkeypatch, [1])
    with pytest.raises(ConfigError, match=r"step 2: .* for 1 step, and trainer.max_skipped is 0"):
        fit(stage, batches_of("finetune", 3), tmp_path)


def test_how_far_a_value_lies_above_the_last_ones() -> None:
    draw = random.Random(0)
    recent = [draw.gauss(1.0, 0.2) for _ in range(WINDOW_UPDATES)]
    assert deviations_above(math.exp(1.0 + 4 * 0.2), recent) == pytest.approx(4, abs=0.8)
    assert deviations_above(math.exp(1.0), recent) == pytest.approx(0, abs=0.4)
    outliers = [*recent[: WINDOW_UPDATES - 10], *[50.0] * 10]
    assert deviations_above(math.exp(1.8), outliers) == pytest.approx(deviations_above(math.exp(1.8), recent), abs=1)
    assert deviations_above(math.exp(9.0), recent[: MIN_UPDATES - 1]) == 0.0
    assert deviations_above(1.05, [0.0] * MIN_UPDATES) == pytest.approx(1, abs=0.05)
    assert deviations_above(0.0, recent) == 0.0


def test_what_is_a_spike() -> None:
    guard = UpdateGuard(3, 6.0)
    for number in range(2 * WINDOW_UPDATES):
        assert guard.reason_to_skip(2.0, 1.0 + 0.1 * (number % 3)) is None
        guard.record_update(2.0, 1.0 + 0.1 * (number % 3))
    assert [len(values) for values in guard.recent.values()] == [WINDOW_UPDATES, WINDOW_UPDATES]
    assert guard.reason_to_skip(2.0, 0.001) is None
    assert guard.reason_to_skip(0.0, 0.0) is None
    assert str(guard.reason_to_skip(4.0, 1.0)).startswith("its loss is 13.9 robust standard deviations above those of")
    assert str(guard.reason_to_skip(2.0, 9.0)).startswith("its gradient norm is ")
    assert "not finite" in str(guard.reason_to_skip(2.0, float("inf")))
    guard.record_update(0.0, 0.0)
    assert guard.recent["loss"][-1] == math.log(2.0)
    assert UpdateGuard(3).reason_to_skip(1e30, 1e30) is None


def test_a_spike_makes_no_update_and_is_found_again_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, spike = MIN_UPDATES + 4, MIN_UPDATES + 2
    trainer = {"max_steps": steps, "spike_threshold": 20.0}
    batches = batches_of("finetune", steps)
    whole, first, second = (build_stage("finetune", tmp_path, trainer=trainer) for _ in range(3))
    spoil(whole, monkeypatch, [spike], factor=1e3)
    lines = journalled(whole, batches, tmp_path / "whole")
    (note,) = [line["note"] for line in lines if "note" in line]
    assert note["skipped"] == list(batches[spike].keys)
    assert "robust standard deviations above those of the last 22 updates" in note["reason"]
    assert [line["step"] for line in lines if "train/skipped_in_a_row" in line] == [spike + 1]
    spoil(first, monkeypatch, [spike], factor=1e3)
    first.experiment.trainer.checkpoint_every = MIN_UPDATES + 1
    with pytest.raises(RuntimeError, match="killed"):
        fit(first, [*batches[: MIN_UPDATES + 1], None], tmp_path, [Killed(MIN_UPDATES + 1)])
    spoil(second, monkeypatch, [1], factor=1e3)
    fit(second, batches[MIN_UPDATES + 1 :], tmp_path, resume=tmp_path / "last.ckpt")
    assert second.guard.recent == whole.guard.recent
    wanted, found = snapshot(whole.model), snapshot(second.model)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_too_many_spikes_end_the_run() -> None:
    guard = UpdateGuard(1, 6.0)
    reason = "its gradient norm is 9.0 robust standard deviations above"
    step = SkippedStep(7, reason, 2.0, 50.0, ["a"], [2.0, float("nan")])
    guard.record_skip(step, [])
    with pytest.raises(ConfigError) as raised:
        guard.record_skip(dataclasses.replace(step, number=8), [])
    assert str(raised.value) == (
        "step 8: no update for 2 steps in a row, and trainer.max_skipped is 1 (loss 2 on rank 1, gradient norm 50, "
        "samples a; its gradient norm is 9.0 robust standard deviations above): lower optimizer.learning_rate, raise "
        "optimizer.warmup_steps, raise trainer.spike_threshold, or look at the samples"
    )
