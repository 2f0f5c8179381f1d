"""The alignment probe as a stage: what it refuses, what it takes over, and that it tells encoders apart."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import IGNORE_INDEX, Batch
from fvl_lightning.modeling.build import load_model
from fvl_lightning.runs.setup import start_from
from fvl_lightning.stages.base import Stage
from tests.stages.fitting import batches_of, build_stage, fit
from tests.tiny_models import VOCABULARY, experiment, rows, snapshot

N = 32


def probe(folder: Path, seed: int = 0, inherit: tuple[str, ...] = ()) -> Stage:
    """A probe of the tiny model that compares 32 captions, and trains on as many."""
    stage = {"name": "alignment_probe", "captions": N, "temperature": 0.1}
    stage |= {"inherit": list(inherit)} if inherit else {}
    settings = {"batch_size": N, "max_steps": 120, "validate_every": 120}
    config = experiment(
        folder, stage, "caption", {"learning_rate": 0.01}, settings, fusion="concat", projector="linear", seed=seed
    )
    return config.stage.component.build(config)


def test_what_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    config = experiment(tmp_path, {"name": "alignment_probe", "captions": 3}, "caption", trainer={"batch_size": 8})
    with pytest.raises(ConfigError, match=r"stage\.captions: the 8 rows of a batch .* are no multiple of N = 3"):
        config.stage.component.build(config)
    config = experiment(tmp_path, "alignment_probe", "caption")
    config.data.config.packing = "best_fit"
    with pytest.raises(ConfigError, match=r"data\.packing: stage alignment_probe needs one caption per row"):
        config.stage.component.build(config)
    two = {"sources": ["davit", "ocr"]}
    config = experiment(tmp_path, "alignment_probe", "caption", fusion="deepstack", encoder=two)
    with pytest.raises(ConfigError, match="fusion: deepstack brings features into inner layers"):
        config.stage.component.build(config)
    with pytest.raises(ConfigError, match=r"stage\.inherit: unknown component 'projector'"):
        check_config(ExperimentConfig, {"stage": {"name": "alignment_probe", "inherit": ["projector"]}})


def test_only_encoder_and_language_model_are_taken_over(tmp_path: Path) -> None:
    """With stage.inherit a random encoder beside a trained language model; what is saved is a whole model."""
    other = build_stage("finetune", tmp_path, seed=5, fusion="gated")
    other.save_model(tmp_path / "model")
    for inherit in (("encoder", "language_model"), ("language_model",)):
        stage = probe(tmp_path, inherit=inherit)
        before, given = snapshot(stage.model), snapshot(other.model)
        changed = dataclasses.replace(stage.experiment, init_from=[str(tmp_path / "model")])
        assert [parent["components"] for parent in start_from(stage, changed)] == [list(inherit)]
        for name, tensor in snapshot(stage.model).items():
            component = name.split(".")[0]
            assert torch.equal(tensor, (given if component in inherit else before)[name]), name
    stage.save_model(tmp_path / "probe")
    loaded = load_model(tmp_path / "probe").model
    weight = stage.model.projector.state_dict()
    assert all(torch.equal(tensor, weight[name]) for name, tensor in loaded.projector.state_dict().items())


def test_the_log_has_the_true_number_of_captions(tmp_path: Path) -> None:
    """Also where a sample had to be left out."""
    stage = build_stage("alignment_probe", tmp_path, trainer={"max_steps": 1})
    (batch,) = batches_of("alignment_probe", 1)
    short = dataclasses.replace(
        batch, token_ids=batch.token_ids[:3], labels=batch.labels[:3], images=batch.images[:3], keys=batch.keys[:3]
    )
    fit(stage, [short], tmp_path, validation=[batch, short])
    values = stage.read_log()
    assert values["alignment/captions"] == pytest.approx((2 + 2 + 1) / 3)
    assert {"train/loss", "train/accuracy"} <= values.keys()
    assert stage.last_validation_loss is not None


def planted(stage: Stage, batch: Batch, informative: bool, seed: int) -> Batch:
    """The batch with features in place of images: of the caption's words in one source, or noise in all."""
    generator = torch.Generator().manual_seed(seed)
    specs = stage.model.encoder.specs
    features = {
        name: torch.randn(len(batch.keys), spec.tokens, spec.dim, generator=generator) for name, spec in specs.items()
    }
    if informative:
        words = batch.token_ids.where(batch.labels != IGNORE_INDEX, 0)
        counts = torch.nn.functional.one_hot(words, VOCABULARY)[..., 1:].sum(1).float()
        spec = specs["ocr"]
        mixed = counts @ torch.randn(VOCABULARY - 1, spec.dim, generator=torch.Generator().manual_seed(0))
        features["ocr"] = mixed[:, None].expand(-1, spec.tokens, -1) + 0.1 * features["ocr"]
    return dataclasses.replace(batch, images=None, features=features)


@pytest.mark.slow
def test_an_encoder_that_sees_the_caption_is_far_below_one_that_does_not(tmp_path: Path) -> None:
    """At least 0.3 nats at N = 32, with 3 seeds; the blind one stays at chance, ln 32."""
    for seed in range(3):
        found = {}
        for informative in (True, False):
            stage = probe(tmp_path / f"{seed}{informative}", seed=seed)
            batches = [planted(stage, rows(N, 1000 * seed + k, 20), informative, k) for k in range(120)]
            validation = [planted(stage, rows(N, 900_000 + k, 20), informative, 5000 + k) for k in range(8)]
            fit(stage, batches, tmp_path / f"{seed}{informative}", validation=validation)
            found[informative] = stage.last_validation_loss
        assert found[False] > math.log(N) - 0.1, found
        assert found[True] < found[False] - 0.3, found
