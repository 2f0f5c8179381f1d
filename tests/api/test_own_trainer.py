"""A Lightning Trainer of one's own, as docs/python.md promises: what equals `train`, and what a plain Trainer lacks."""

import csv
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fvl_lightning.api.experiment import BuiltTraining, build, load_experiment
from fvl_lightning.api.run import Run, train
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.modeling.build import load_model
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.step_logging import LogWindow
from tests.conftest import ONE_THREAD, ROOT, TINY, furnish

STEPS, ROWS = 4, 8
SETTINGS = {
    "trainer.max_steps": STEPS,
    "trainer.batch_size": ROWS // 2,
    "trainer.accumulate": 2,
    "trainer.validate_every": 2,
    "trainer.log_every": 2,
    "optimizer.warmup_steps": 1,
    "optimizer.final_fraction": 0.0,
}


class Modes(Callback):
    """Notes at every batch whether the frozen encoder is in train mode."""

    def __init__(self) -> None:
        self.training: set[bool] = set()

    def on_train_batch_start(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        self.training.add(stage.model.encoder.training)


class Plain(NamedTuple):
    """The same experiment trained by a plain Trainer and by `train`."""

    folder: Path
    built: BuiltTraining
    modes: Modes
    files: list[str]
    """What lay in the working folder before `train`."""
    run: Run


@pytest.fixture(autouse=True, scope="module")
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Plain]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := furnish(tmp_path_factory.mktemp("plain"), tiny_data))
        experiment, modes = tiny(), Modes()
        checkpoints = ModelCheckpoint("checkpoints", every_n_train_steps=2, save_top_k=-1, filename="{step}")
        trainer = trainer_of(experiment, "plain", LogWindow(2), checkpoints, modes, gradient_clip_val=1e-6)
        built = fit(experiment, trainer)
        files = sorted(path.name for path in folder.iterdir())
        yield Plain(folder, built, modes, files, train(experiment))


def tiny(*overrides: Any) -> ExperimentConfig:
    return load_experiment("experiments/demo/finetune.yaml", *TINY, SETTINGS, "fusion=gated", *overrides)


def trainer_of(experiment: ExperimentConfig, folder: str, *callbacks: Callback, **others: Any) -> Trainer:
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


def fit(experiment: ExperimentConfig, trainer: Trainer, checkpoint: str | None = None) -> BuiltTraining:
    built = build(experiment)
    torch.manual_seed(experiment.seed)
    trainer.fit(built.stage, datamodule=built.data, ckpt_path=checkpoint)
    return built


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    return stage.model.state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_weights_are_those_of_train_bit_for_bit(plain: Plain) -> None:
    assert_same(weights(plain.built.stage), load_model(plain.run.folder.model).model.state_dict())


def test_the_values_logged_are_those_of_train(plain: Plain) -> None:
    rows = list(csv.DictReader((plain.folder / "plain" / "metrics.csv").open(encoding="utf-8")))
    for name in ("train/loss", "validation/loss", "mass/ocr", "learning_rate/fusion"):
        found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert found == plain.run.curve(name), name
        assert [step for step, _ in found] == [2, 4], "the sanity check before the first step logs nothing"
    assert found[-1][1] == 0, "the schedule ends with the experiment"


def test_callbacks_can_monitor_what_validation_gives(plain: Plain) -> None:
    metrics = plain.built.stage.trainer.callback_metrics
    (last,) = [value for step, value in plain.run.curve("validation/loss") if step == STEPS]
    assert float(metrics["validation/loss"]) == pytest.approx(last, rel=1e-6)
    with pytest.raises(ConfigError, match=r"unknown metric 'validation/los', .*; did you mean 'validation/loss'"):
        plain.run.curve("validation/los")


def test_a_frozen_component_stays_in_eval_mode_and_keeps_every_bit(plain: Plain) -> None:
    start = weights(build(plain.built.stage.experiment).stage)
    after = weights(plain.built.stage)
    frozen = {name for name in after if name.startswith("encoder.")}
    assert_same({name: after[name] for name in frozen}, {name: start[name] for name in frozen})
    assert any(not torch.equal(after[name], start[name]) for name in after.keys() - frozen)
    assert plain.modes.training == {False}


def test_there_is_no_run(plain: Plain) -> None:
    assert plain.files == ["checkpoints", "data", "experiments", "plain"]


def test_a_checkpoint_of_lightnings_own_resumes_bit_for_bit(plain: Plain) -> None:
    experiment = tiny()
    resumed = fit(experiment, trainer_of(experiment, "rest"), "checkpoints/step=2.ckpt").stage
    assert resumed.position == plain.built.stage.position == STEPS * ROWS
    assert_same(weights(resumed), weights(plain.built.stage))


def test_loaders_in_place_of_the_data_module_begin_again_and_no_configuration_is_compared(plain: Plain) -> None:
    experiment = tiny("optimizer.learning_rate=0.001")
    stage, data = build(experiment)
    trainer = trainer_of(experiment, "loaders", max_steps=3)
    trainer.fit(stage, data.train_dataloader(), data.val_dataloader(), ckpt_path="checkpoints/step=2.ckpt")
    assert stage.global_step == 3
    assert stage.position == ROWS
    assert trainer.optimizers[0].param_groups[0]["lr"] > 0, "the schedule ends with the experiment, not here"


def test_a_checkpoint_of_other_frozen_weights_is_refused(plain: Plain) -> None:
    experiment = tiny("seed=1")
    with pytest.raises(DataError, match="frozen weights"):
        fit(experiment, trainer_of(experiment, "other"), "checkpoints/step=2.ckpt")


def test_steps_without_a_finite_loss_end_the_training(plain: Plain) -> None:
    experiment = tiny("trainer.max_skipped=0")
    stage, data = build(experiment)
    before = next(iter(stage.model.projector.parameters())).detach().fill_(float("nan")).clone()
    with pytest.raises(ConfigError, match="no finite loss and gradient for 1 step"):
        trainer_of(experiment, "poisoned", num_sanity_val_steps=0).fit(stage, datamodule=data)
    assert torch.equal(next(iter(stage.model.projector.parameters())).isnan(), before.isnan())


TWO_RANKS = """
import sys
import torch
from lightning import Trainer
from fvl_lightning import build, load_experiment, quiet_libraries
if __name__ == "__main__":
    quiet_libraries()
    ranks, settings = int(sys.argv[1]), {"trainer.batch_size": 8 // int(sys.argv[1])}
    stage, data = build(load_experiment("experiments/demo/finetune.yaml", *sys.argv[2:], settings))
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_steps=3, logger=False,
        accumulate_grad_batches=2, check_val_every_n_epoch=None, val_check_interval=6, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(stage, datamodule=data)
    if trainer.is_global_zero:
        torch.save(stage.model.state_dict(), f"{ranks}.pt")
        assert stage.position == 3 * 2 * 8
"""


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(workspace: Path) -> None:
    (workspace / "script.py").write_text(TWO_RANKS, encoding="utf-8")
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    for ranks in ("1", "2"):
        command = [sys.executable, "script.py", ranks, *TINY, "optimizer.warmup_steps=1"]
        subprocess.run(command, cwd=workspace, env=environment, check=True, timeout=600)
    one, two = (torch.load(workspace / f"{ranks}.pt", weights_only=True) for ranks in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=0, msg=name)
