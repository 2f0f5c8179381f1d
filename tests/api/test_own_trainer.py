"""A Lightning Trainer of one's own against `train`: what is the same, and what a plain Trainer leaves out."""

import csv
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fvl_lightning.api.experiment import BuiltTraining, build, load_experiment
from fvl_lightning.api.run import train
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.modeling.build import load_model
from fvl_lightning.training.step_logging import LogWindow
from tests.conftest import TINY

STEPS = 4


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keeps Lightning from listing devices and from advising loader workers, and torch on one thread."""
    log, threads = logging.getLogger("lightning.pytorch"), torch.get_num_threads()
    level = log.level
    log.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    log.setLevel(level)
    torch.set_num_threads(threads)


def tiny(*overrides: Any) -> ExperimentConfig:
    fixed = {"trainer.max_steps": STEPS, "trainer.batch_size": 4, "trainer.accumulate": 2, "trainer.validate_every": 2}
    fixed["trainer.log_every"] = 2
    return load_experiment("experiments/demo/finetune.yaml", *TINY, fixed, "fusion=gated", *overrides)


def trainer_of(experiment: ExperimentConfig, folder: Path, *callbacks: Callback, **others: Any) -> Trainer:
    settings = experiment.trainer
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": settings.max_steps,
        "accumulate_grad_batches": settings.accumulate,
        "val_check_interval": settings.validate_every * settings.accumulate,
        "check_val_every_n_epoch": None,
        "callbacks": list(callbacks),
        "logger": CSVLogger(folder, name="", version=""),
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**arguments | others)


def fit(experiment: ExperimentConfig, trainer: Trainer, checkpoint: Path | None = None) -> BuiltTraining:
    built = build(experiment)
    torch.manual_seed(experiment.seed)
    trainer.fit(built.stage, datamodule=built.data, ckpt_path=checkpoint, weights_only=True)
    return built


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def test_a_plain_trainer_makes_the_weights_of_train_bit_for_bit(here: Path) -> None:
    experiment = tiny()
    built = fit(experiment, trainer_of(experiment, here / "plain", LogWindow(2)))
    run = train(experiment)
    assert same(built.stage.model, load_model(run.folder.model).model)

    rows = list(csv.DictReader((here / "plain" / "metrics.csv").open(encoding="utf-8")))
    logged = [(int(row["step"]), float(row["validation/loss"])) for row in rows if row["validation/loss"]]
    assert [step for step, _ in logged] == [2, 4], "the sanity check of the validation logs nothing"
    for name in ("train/loss", "validation/loss", "mass/ocr"):
        found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert found == [point for point in run.curve(name) if point[0] in (2, 4)], name


def test_a_checkpoint_of_lightnings_own_resumes_bit_for_bit(here: Path) -> None:
    experiment = tiny({"trainer.validate_every": STEPS})
    whole = fit(experiment, trainer_of(experiment, here / "whole"))
    checkpoints = ModelCheckpoint(here / "half", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(experiment, trainer_of(experiment, here / "half", checkpoints, max_steps=2))
    resumed = fit(experiment, trainer_of(experiment, here / "rest"), here / "half" / "step=2.ckpt")
    assert resumed.stage.global_step == STEPS
    assert resumed.stage.position == whole.stage.position == STEPS * 8
    assert same(resumed.stage.model, whole.stage.model)
