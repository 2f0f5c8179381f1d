"""What every stage promises: the exact objective, what moves and what does not, and where it goes on."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.build import load_model
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import CHILDREN, component_of
from fvl_lightning.training.weights import load_components, weights_hash
from tests.stages.fitting import VIEWS, batches_of, build_stage, experiment_of, fit, split
from tests.tiny_models import named_tensors, pixels, rows, snapshot, tiny_model

FLOAT64 = 1e-10
STAGES = list(VIEWS)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lightning tells about its devices at every fit."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


def in_float64(stage: Stage, batches: list[Any]) -> list[Any]:
    stage.model.double()
    return [dataclasses.replace(batch, images=batch.images.double()) for batch in batches]


def test_every_stage_is_tested_here() -> None:
    """A newcomer's stage asks for a line in VIEWS."""
    assert sorted(STAGES) == [name for name in registry.names("stage") if name != "alignment_probe"]


# The objective.


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_update_does_not_depend_on_the_split(name: str, optimizer: str, tmp_path: Path) -> None:
    """Two steps of four samples: at once, in two halves, or one by one; their tokens are unlike in number."""
    found = []
    for parts in (1, 2, 4):
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


@pytest.mark.parametrize("name", STAGES)
def test_gradients_are_of_the_mean_over_tokens(name: str, tmp_path: Path) -> None:
    """At a learning rate of 0 the gradients of the last step lie there still; no clipping."""
    stage = build_stage(
        name,
        tmp_path,
        optimizer={"learning_rate": 0.0, "clip_norm": None},
        trainer={"max_steps": 1, "accumulate": 2},
    )
    batches = in_float64(stage, batches_of(name, 1))
    fit(stage, split(batches, 2), tmp_path)
    found = {key: p.grad.clone() for key, p in stage.model.named_parameters() if p.grad is not None}
    stage.model.zero_grad()
    loss, _ = stage.compute(batches[0])
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
    fit(stage, batches_of("finetune", 1), tmp_path)
    squares = [float((p.grad.double() ** 2).sum()) for p in stage.model.parameters() if p.grad is not None]
    assert sum(squares) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert float(stage.logged.gradient_norm) > 1e-2


def test_the_log_is_a_mean_over_the_tokens_of_its_window(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path, fusion="gated", optimizer={"learning_rate": 0.0},
                        trainer={"max_steps": 3})
    batches = batches_of("finetune", 3)
    fit(stage, batches, tmp_path)
    values = stage.logged.read()
    with torch.no_grad():
        losses = [stage.compute(batch)[0] for batch in batches]
    tokens = sum(int(loss.tokens) for loss in losses)
    assert values["train/loss"] == pytest.approx(sum(float(loss.sum) for loss in losses) / tokens, abs=1e-4)
    correct = sum(int(loss.correct) for loss in losses)
    assert values["train/token_accuracy"] == pytest.approx(correct / tokens, abs=1e-6)
    assert sum(value for key, value in values.items() if key.startswith("mass/")) == pytest.approx(1, abs=1e-5)
    assert stage.logged.read()["train/loss"] == 0, "read() starts a new window"


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


# What moves.


class Modes(Callback):
    """The modes of every module at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bool]] = []

    def on_train_batch_start(self, trainer: Any, stage: Stage, *_: Any) -> None:
        self.seen.append({name: module.training for name, module in stage.model.named_modules() if name})


WHAT_TRAINS = [
    ("encoder_pretrain", {}, {"encoder"}),
    ("align", {}, {"fusion", "projector"}),
    ("pretrain", {}, set(COMPONENTS)),
    ("pretrain", {"encoder": "frozen"}, {"fusion", "projector", "language_model"}),
    ("finetune", {}, {"fusion", "projector", "language_model"}),
    ("finetune", {"language_model": "frozen"}, {"fusion", "projector"}),
]


@pytest.mark.parametrize(("name", "trainable", "trains"), WHAT_TRAINS)
def test_frozen_parts_stay_bit_for_bit(
    name: str, trainable: dict[str, str], trains: set[str], tmp_path: Path
) -> None:
    """Parameters and buffers, and eval mode throughout, after a validation too; every matrix that trains moves."""
    stage = build_stage(
        name,
        tmp_path,
        trainable=trainable,
        optimizer={"learning_rate": 0.01, "weight_decay": 0.1},
        trainer={"max_steps": 3, "validate_every": 2},
    )
    before = snapshot(stage.model)
    buffers = {key for key, _ in stage.model.named_buffers()}
    modes = Modes()
    fit(stage, batches_of(name, 3), tmp_path, [modes], validation=batches_of(name, 1, first=7))
    for key, tensor in named_tensors(stage.model):
        if component_of(key) not in trains or key in buffers:
            assert torch.equal(tensor, before[key]), f"{key} moved"
        elif tensor.ndim > 1:
            assert not torch.equal(tensor, before[key]), f"{key} stayed"
    assert len(modes.seen) == 3
    for seen in modes.seen:
        wrong = [key for key, training in seen.items() if training != (CHILDREN[key.split(".")[0]] in trains)]
        assert not wrong, f"wrong mode: {wrong[:3]}"


def test_dropout_of_a_frozen_encoder_is_off(tmp_path: Path) -> None:
    """Two passes over one batch in training give one loss, though the encoder was built with dropout and drop path."""
    encoder = tiny_model().encoder.config.model
    dropping = {
        "vision_config": {**encoder["vision_config"], "drop_path_rate": 0.5},
        "text_config": {**encoder["text_config"], "dropout": 0.5},
    }
    stage = build_stage(
        "finetune", tmp_path, encoder={"model": dropping}, optimizer={"learning_rate": 0.0}, trainer={"max_steps": 2}
    )
    seen: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, stage: Any, outputs: Any, *_: Any) -> None:
            seen.append(float(outputs["loss"]))

    fit(stage, batches_of("finetune", 1) * 2, tmp_path, [Losses()])
    assert seen[0] == seen[1]


def test_a_frozen_encoder_makes_no_graph(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path)
    assert not any(source.requires_grad for source in stage.model.encoder(pixels(1)).values())


def test_the_first_step_checks_who_got_a_gradient(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1})
    stage.model.projector.register_forward_hook(lambda _, __, out: out.detach())
    with pytest.raises(AssertionError, match=r"meant to train received no gradient: \['fusion', 'projector'\]"):
        fit(stage, batches_of("finetune", 1), tmp_path)
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1})
    stage.model.encoder.requires_grad_(True)
    with pytest.raises(AssertionError, match=r"frozen components received gradients: \['encoder'\]"):
        fit(stage, batches_of("finetune", 1), tmp_path)


# What is refused.


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("view", ["tasks", "caption", "conversation"])
def test_a_stage_learns_from_its_own_views(name: str, view: str, tmp_path: Path) -> None:
    experiment = experiment_of(name, tmp_path)
    experiment.data.config.view = view
    stage = experiment.stage.component
    if view in stage.VIEWS:
        stage.build(experiment)
        return
    allowed = " or ".join(stage.VIEWS)
    with pytest.raises(ConfigError, match=f"^data.view: stage {name} learns from {allowed}, not {view}$"):
        stage.build(experiment)


@pytest.mark.parametrize("name", STAGES)
def test_something_must_learn(name: str, tmp_path: Path) -> None:
    everything = dict.fromkeys(registry.component("stage", name).TRAINABLE, "frozen")
    with pytest.raises(ConfigError, match="every component is frozen, nothing would learn"):
        build_stage(name, tmp_path, trainable=everything)


def test_a_stage_trains_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trainable of stage encoder_pretrain: unknown component 'fusion'"):
        build_stage("encoder_pretrain", tmp_path, trainable={"fusion": "full"})


# Going on, and handing over.


@pytest.mark.parametrize("name", STAGES)
def test_builds_without_memory(name: str, tmp_path: Path) -> None:
    experiment = experiment_of(name, tmp_path)
    stage = experiment.stage.component.build(experiment, device="meta")
    assert not [key for key, tensor in named_tensors(stage.model) if not tensor.is_meta]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_position_is_of_the_last_update(accumulate: int, tmp_path: Path) -> None:
    """Batches fetched ahead are not consumed."""
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 2, "accumulate": accumulate})
    fit(stage, batches_of("finetune", 6), tmp_path)
    assert stage.position == 2 * accumulate * 4
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["position"] == stage.position


@pytest.mark.parametrize("name", ["encoder_pretrain", "finetune"])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Bit for bit, with Muon, warm-up and dropout: four steps, or two, a checkpoint in another object, and two."""
    model = tiny_model().encoder.config.model
    how: dict[str, Any] = {
        "optimizer": {"name": "muon", "learning_rate": 0.01, "warmup_steps": 3, "weight_decay": 0.1},
        "encoder": {"model": model | {"text_config": {**model["text_config"], "dropout": 0.2}}},
        "trainer": {"max_steps": 4, "checkpoint_every": 2},
    }
    batches = batches_of(name, 4)
    torch.manual_seed(0)
    whole = build_stage(name, tmp_path / "whole", **how)
    fit(whole, batches, tmp_path / "whole")

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    torch.manual_seed(0)
    first = build_stage(name, tmp_path / "parts", **how)
    stopped = fit(first, batches, tmp_path / "parts", [Stop()])
    assert stopped.global_step == 2
    assert first.position == 8
    torch.manual_seed(99)
    second = build_stage(name, tmp_path / "parts", seed=5, **how)
    resumed = fit(second, batches_of(name, 2, first=2), tmp_path / "parts", resume=tmp_path / "parts" / "last.ckpt")
    assert (resumed.global_step, second.position) == (4, 16)
    wanted = snapshot(whole.model)
    differing = [key for key, tensor in snapshot(second.model).items() if not torch.equal(tensor, wanted[key])]
    assert not differing


def test_a_language_stage_saves_a_model_that_loads(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path)
    stage.save_model(tmp_path / "model")
    built = load_model(tmp_path / "model")
    assert not built.model.training
    assert built.tokenizer.get_vocab() == stage.tokenizer.get_vocab()
    batch, stage = rows(2), stage.eval()
    # torch takes another kernel, with other last bits, for weights that want a gradient.
    both = [model.requires_grad_(False) for model in (stage.model, built.model)]
    ours, again = (model(batch.token_ids, pixel_values=batch.images).logits for model in both)
    assert torch.equal(again, ours)


def test_encoder_pretrain_saves_an_encoder_for_the_others(tmp_path: Path) -> None:
    stage = build_stage("encoder_pretrain", tmp_path, seed=3)
    stage.save_model(tmp_path / "model")
    finetune = build_stage("finetune", tmp_path)
    assert load_components(finetune.model, tmp_path / "model") == ["encoder"]
    assert weights_hash(finetune.model.encoder.state_dict()) == weights_hash(stage.model.encoder.state_dict())


# Learning.


def one_batch(name: str) -> Any:
    """One batch in which nothing but the image tells the answers apart."""
    (batch,) = batches_of(name, 1)
    if name == "encoder_pretrain":
        return batch
    token_ids = batch.token_ids.clone()
    asked = batch.labels.eq(IGNORE_INDEX).all(0)
    token_ids[:, asked] = token_ids[0, asked]
    return dataclasses.replace(batch, token_ids=token_ids)


@pytest.mark.parametrize("name", ["encoder_pretrain", "pretrain", "finetune"])
def test_one_batch_is_learnt_by_heart(name: str, tmp_path: Path) -> None:
    """To under 0.05 nats a token, from about ln 40 = 3.7."""
    stage = build_stage(
        name,
        tmp_path,
        optimizer={"name": "muon", "learning_rate": 0.02, "warmup_steps": 5, "final_fraction": 0.1},
        trainer={"max_steps": 100},
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
