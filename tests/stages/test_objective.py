"""The exact objective: the same update for any split of the samples, and all metrics are means over tokens."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.checkpointing.last_and_previous import best_checkpoint
from tests.stages.fitting import STAGES, batches_of, build_stage, fit, split
from tests.tiny_models import rows, snapshot

FLOAT64 = 1e-10


def in_float64(stage: Stage, batches: list[Any]) -> list[Any]:
    stage.model.double()
    return [dataclasses.replace(batch, images=batch.images.double()) for batch in batches]


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "adamw") for name in STAGES), ("pretrain", "muon"), ("encoder_pretrain", "muon")]
)
def test_the_update_does_not_depend_on_the_split(name: str, optimizer: str, tmp_path: Path) -> None:
    """Two steps of four samples: at once, in two halves, or one by one; their tokens are unlike in number."""
    found = []
    for parts in (1, 2) if name == "alignment_probe" else (1, 2, 4):  # it compares two samples with each other
        stage = build_stage(
            name,
            tmp_path,
            optimizer={"name": optimizer, "learning_rate": 0.01, "clip_norm": 0.5},
            trainer={"max_steps": 2, "accumulate": parts},
        )
        trainer = fit(stage, split(in_float64(stage, batches_of(name, 2)), parts), tmp_path)
        assert trainer.global_step == 2
        found.append(snapshot(stage.model))
    start = snapshot(build_stage(name, tmp_path).model)
    for other in found[1:]:
        for key, tensor in found[0].items():
            torch.testing.assert_close(other[key], tensor, atol=FLOAT64, rtol=0, msg=key)
    assert max(float((tensor - start[key]).abs().max()) for key, tensor in found[0].items()) > 1e-3


class LastGradients(Callback):
    """Copies the gradients after each step; they are dropped at the end of the training."""

    def on_train_batch_end(self, trainer: Any, stage: Any, *_: Any) -> None:
        self.found = {key: p.grad.clone() for key, p in stage.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", STAGES)
def test_gradients_are_of_the_mean_over_tokens(name: str, tmp_path: Path) -> None:
    """At a learning rate of 0 the gradients of the last step are those of the model at the end; no clipping."""
    stage = build_stage(
        name,
        tmp_path,
        optimizer={"learning_rate": 0.0, "clip_norm": None},
        trainer={"max_steps": 2, "accumulate": 2},
    )
    batches = in_float64(stage, batches_of(name, 2))
    last = LastGradients()
    fit(stage, split(batches, 2), tmp_path, [last])
    found = last.found
    loss, _ = stage.compute(batches[1])
    loss.mean.backward()
    assert found
    for key, parameter in stage.model.named_parameters():
        assert (parameter.grad is None) == (key not in found), key
        if key in found:
            torch.testing.assert_close(found[key], parameter.grad, atol=1e-6, rtol=0, msg=key)


def test_the_norm_is_kept_as_it_was_before_clipping(tmp_path: Path) -> None:
    stage = build_stage(
        "finetune", tmp_path, optimizer={"learning_rate": 0.0, "clip_norm": 1e-3}, trainer={"max_steps": 1}
    )
    last = LastGradients()
    fit(stage, batches_of("finetune", 1), tmp_path, [last])
    squares = [float((gradient.double() ** 2).sum()) for gradient in last.found.values()]
    assert sum(squares) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert float(stage.step_metrics.gradient_norm) > 1e-2


def test_the_log_is_a_mean_over_the_tokens_of_its_window(tmp_path: Path) -> None:
    stage = build_stage(
        "finetune", tmp_path, fusion="gated", optimizer={"learning_rate": 0.0}, trainer={"max_steps": 3}
    )
    batches = batches_of("finetune", 3)
    fit(stage, batches, tmp_path)
    values = stage.step_metrics.read()
    with torch.no_grad():
        losses = [stage.compute(batch)[0] for batch in batches]
    tokens = sum(int(loss.tokens) for loss in losses)
    assert values["train/loss"] == pytest.approx(sum(float(loss.sum) for loss in losses) / tokens, abs=1e-4)
    correct = sum(int(loss.correct) for loss in losses)
    assert values["train/token_accuracy"] == pytest.approx(correct / tokens, abs=1e-6)
    assert sum(value for key, value in values.items() if key.startswith("mass/")) == pytest.approx(1, abs=1e-5)
    assert "train/loss" not in stage.step_metrics.read(), "read() starts a new window"


def test_the_validation_loss_is_a_mean_over_all_tokens(tmp_path: Path) -> None:
    """Not a mean of batches: they have 4 and 1 samples."""
    stage = build_stage("finetune", tmp_path, optimizer={"learning_rate": 0.0}, trainer={"max_steps": 1})
    validation = [rows(4, seed=5), rows(1, seed=6)]
    fit(stage, batches_of("finetune", 1), tmp_path, validation=validation)
    with torch.no_grad():
        losses = [stage.compute(batch)[0] for batch in validation]
    wanted = sum(float(loss.sum) for loss in losses) / sum(int(loss.tokens) for loss in losses)
    assert stage.last_validation_loss == pytest.approx(wanted, abs=1e-5)
    by_batch = sum(float(loss.mean) for loss in losses) / 2
    assert abs(by_batch - wanted) > 1e-3


def test_a_validation_batch_that_is_not_finite_makes_the_loss_so_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mean over the other batches would look like a result, and be kept as the best."""
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1, "keep_best": True})
    validation = [rows(4, seed=5), rows(1, seed=6)]
    compute = stage.compute

    def spoilt(batch: Any) -> Any:
        loss, diagnostics = compute(batch)
        wrong = batch.keys == validation[1].keys
        return (dataclasses.replace(loss, sum=loss.sum * float("nan")) if wrong else loss), diagnostics

    monkeypatch.setattr(stage, "compute", spoilt)
    fit(stage, batches_of("finetune", 1), tmp_path, validation=validation)
    assert math.isnan(stage.last_validation_loss)
    assert f"not finite in 1 batches, first with samples {validation[1].keys[0]};" in caplog.text
    assert best_checkpoint(tmp_path) is None


def one_batch(name: str) -> Any:
    """One batch in which nothing but the image tells the answers apart."""
    (batch,) = batches_of(name, 1)
    if name == "encoder_pretrain":
        return batch
    token_ids = batch.token_ids.clone()
    asked = batch.labels.eq(IGNORE_INDEX).all(0)
    token_ids[:, asked] = token_ids[0, asked]
    return dataclasses.replace(batch, token_ids=token_ids)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("encoder_pretrain", marks=pytest.mark.slow),
        pytest.param("pretrain", marks=pytest.mark.slow),
        "finetune",
    ],
)
def test_one_batch_is_learnt_by_heart(name: str, tmp_path: Path) -> None:
    """To under 0.05 nats a token, from about ln 40 = 3.7."""
    stage = build_stage(
        name,
        tmp_path,
        optimizer={"name": "muon", "learning_rate": 0.02, "warmup_steps": 5, "final_fraction": 0.1},
        trainer={"max_steps": 80},
    )
    batch = one_batch(name)
    with torch.no_grad():
        before = float(stage.compute(batch)[0].mean)
    fit(stage, [batch], tmp_path)
    with torch.no_grad():
        after, _ = stage.eval().compute(batch)
    assert before > 3
    assert float(after.mean) < 0.05
    assert int(after.correct) == int(after.tokens)
