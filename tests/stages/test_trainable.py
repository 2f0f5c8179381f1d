"""Trained parameters change and frozen ones do not; some modes are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import COMPONENT_OF_CHILD, component_of
from tests.stages.fitting import STAGES, batches_of, build_stage, experiment_of, fit
from tests.tiny_models import named_tensors, pixels, snapshot, tiny_model


def test_every_stage_is_tested_here() -> None:
    """A newcomer's stage asks for a line in VIEWS."""
    assert sorted(STAGES) == sorted(registry.names("stage"))


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
    ("alignment_probe", {}, {"fusion", "projector"}),
    ("alignment_probe", {"language_model": "full"}, {"fusion", "projector", "language_model"}),
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
        wrong = [key for key, training in seen.items() if training != (COMPONENT_OF_CHILD[key.split(".")[0]] in trains)]
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
    with pytest.raises(ConfigError, match="trainable: fusion, projector must learn but received no gradient"):
        fit(stage, batches_of("finetune", 1), tmp_path)
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1})
    stage.model.encoder.requires_grad_(True)
    with pytest.raises(ConfigError, match="trainable: encoder must not learn but received gradients"):
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
