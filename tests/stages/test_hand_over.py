"""The position at which a stopped stage resumes, and the weights that the next stage gets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.modeling.build import load_model
from fvl_lightning.training.load_weights import load_components
from tests.stages.fitting import STAGES, batches_of, build_stage, experiment_of, fit
from tests.tiny_models import named_tensors, rows, snapshot, tiny_model


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


@pytest.mark.parametrize("name", ["encoder_pretrain", "finetune", "alignment_probe"])
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
    second = build_stage(name, tmp_path / "parts", **how)
    with torch.no_grad():
        for parameter in second.model.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.5)
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
    assert weights_hash(finetune.model.encoder.feature_state()) == weights_hash(stage.model.encoder.feature_state())


def test_samples_are_counted_apart_from_the_position(tmp_path: Path) -> None:
    """Where rows are packed, a position is no count of samples."""
    batches = batches_of("finetune", 3)
    batches[1].position, batches[2].position = 2048, 2049
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 3})
    fit(stage, batches, tmp_path)
    assert (stage.position, int(stage.samples)) == (2049, 12)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["samples"] == 12


def test_the_keys_of_a_step_have_a_digest(tmp_path: Path) -> None:
    """Of all micro-batches of the step, in order; exact as a float."""
    names = (("a", "b"), ("c", "d")), (("a", "c"), ("b", "d")), (("a", "b"), ("c", "d"))
    digests = []
    for keys in names:
        batches = [replace(batch, keys=part) for batch, part in zip(batches_of("finetune", 2, 2), keys, strict=True)]
        stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1, "accumulate": 2})
        fit(stage, batches, tmp_path)
        digests.append(stage.read_log()["data/step_keys"])
    assert digests[0] == digests[2] != digests[1]
    assert float(int(digests[0])) == digests[0] < 2**52
