"""The callbacks of `trainer.callbacks`: what they monitor, their states in a resume, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.training.callbacks.base import build_callbacks
from fvl_lightning.training.callbacks.early_stopping import EarlyStoppingCallback
from fvl_lightning.training.callbacks.guard import CallbackGuard
from fvl_lightning.training.step_logging import LogWindow
from tests.stages.fitting import batches_of, build_stage, fit

TRAINER = {"max_steps": 9, "validate_every": 4, "checkpoint_every": 4, "log_every": 3}
LIGHTNING = "lightning.pytorch.callbacks"


def with_callbacks(*entries: Any) -> ExperimentConfig:
    return ExperimentConfig().with_overrides({"trainer.callbacks": list(entries)})


class Stopped(Exception):
    """Stands for a kill."""


class Probe(Callback):
    """Notes what a callback sees at the end of every batch and validation, and counts in its state."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.seen: list[tuple[str, int, dict[str, float], int]] = []
        self.count, self.killed_at = 0, killed_at

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def note(self, hook: str, trainer: Trainer) -> None:
        self.count += 1
        values = trainer.callback_metrics
        known = {name: float(values[name]) for name in ("train/loss", "validation/loss") if name in values}
        self.seen.append((hook, trainer.global_step, known, self.count))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.note("batch", trainer)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.killed_at:
            raise Stopped

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.note("validation", trainer)


def stopping(**fields: Any) -> EarlyStoppingCallback:
    return EarlyStoppingCallback(EarlyStoppingCallback.Config(monitor="train/loss", **fields))


def train(folder: Path, *callbacks: Callback, resume: Path | None = None, start: int = 0, **settings: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    stage = build_stage("finetune", folder, trainer=TRAINER | settings)
    guard = CallbackGuard(stage.experiment.trainer, callbacks)
    batches, validation = batches_of("finetune", 9), batches_of("finetune", 2, first=20)
    left = batches[start:] + batches[:start]  # as many as at first, or Lightning would see the end of an epoch
    return fit(stage, left, folder, [guard, LogWindow(3), *callbacks], resume, validation)


@pytest.mark.parametrize(
    ("validate_every", "killed_at"), [(4, 4), (3, 6)], ids=["before-its-validation", "in-a-window"]
)
def test_a_resume_shows_callbacks_what_they_would_have_seen(
    tmp_path: Path, validate_every: int, killed_at: int
) -> None:
    """The checkpoint of step 4 lies before a validation of step 4, or in the middle of a logged window."""
    seen, straight = Probe(), stopping(patience=9)
    train(tmp_path / "straight", seen, straight, validate_every=validate_every)
    assert straight.best_score.isfinite()
    with pytest.raises(Stopped):
        train(tmp_path / "killed", Probe(killed_at), stopping(patience=9), validate_every=validate_every)
    resumed, other = Probe(), stopping(patience=9)
    last = tmp_path / "killed" / "last.ckpt"
    train(tmp_path / "killed", resumed, other, resume=last, start=4, validate_every=validate_every)
    assert resumed.seen == [one for one in seen.seen if one[1] > 4 or one[:2] == ("validation", 4)]
    assert other.state_dict() | {"best_score": 0} == straight.state_dict() | {"best_score": 0}
    assert torch.equal(other.best_score, straight.best_score)


def test_a_training_ends_where_the_loss_no_longer_improves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fvl_lightning")
    trainer = train(tmp_path, stopping(patience=1, min_delta=1e6))
    assert trainer.global_step == 8, "the second validation has no better value than the first"
    assert "step 8: the training ends early" in caplog.text


def test_a_metric_that_nobody_logs_is_one_sentence(tmp_path: Path) -> None:
    wrong = EarlyStoppingCallback(EarlyStoppingCallback.Config(monitor="validation/los"))
    with pytest.raises(ConfigError, match=r"unknown metric 'validation/los', .*did you mean 'validation/loss'"):
        train(tmp_path, wrong)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("ModelCheckpoint", {}, "ModelCheckpoint cannot be used, the kit saves checkpoints itself"),
        ("OnExceptionCheckpoint", {"dirpath": "x"}, "the kit saves checkpoints itself"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.1}, "changes weights and learning rates"),
        ("GradientAccumulationScheduler", {"scheduling": {0: 2}}, "trainer.accumulate"),
        ("TQDMProgressBar", {}, "the kit shows progress itself"),
        ("EarlyStoping", {}, r"unknown class of lightning.pytorch.callbacks 'EarlyStoping'.*mean 'EarlyStopping'"),
        ("EarlyStopping", {"monitr": "x"}, "unknown argument 'monitr'.*did you mean 'monitor'"),
        ("EarlyStopping", {}, "missing a required argument: 'monitor'"),
        ("EarlyStopping", {"monitor": "x", "mode": "up"}, "EarlyStopping.monitor, mode.: Misconfig.*got up"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.callbacks.*{sentence}"):
        build_callbacks(with_callbacks({f"{LIGHTNING}.{name}": arguments}).trainer.callbacks)


def test_classes_of_other_kinds_and_modules_that_are_not_there() -> None:
    for path, sentence in (
        ("lightning.pytorch.loggers.CSVLogger", "is no Callback of Lightning"),
        ("no_such_package.Mine", r"cannot be imported \(ModuleNotFoundError.*name a file of your own in `plugins`"),
        (".Mine", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build_callbacks(with_callbacks(path).trainer.callbacks)
    same = [{f"{LIGHTNING}.EarlyStopping": {"monitor": "train/loss"}}] * 2
    with pytest.raises(ConfigError, match="two of EarlyStopping have one state_key"):
        build_callbacks(with_callbacks(*same).trainer.callbacks)


class Changes(Callback):
    """Changes weights, or which of them learn, in one of its hooks."""

    def __init__(self, hook: str, frozen: bool = False) -> None:
        self.frozen = frozen
        setattr(self, hook, self.change)

    @torch.no_grad()
    def change(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        weight = next(iter(stage.model.projector.parameters()))
        weight.requires_grad_(False) if self.frozen else weight.mul_(0.5)


@pytest.mark.parametrize(
    "callback",
    [
        Changes("on_train_batch_start"),
        Changes("on_train_end"),
        Changes("on_train_batch_end", frozen=True),
    ],
)
def test_a_callback_that_changes_weights_ends_the_training(tmp_path: Path, callback: Callback) -> None:
    with pytest.raises(ConfigError, match="Changes changed weights, or which of them learn, outside"):
        train(tmp_path, callback, max_steps=2)


def test_a_callback_that_changes_the_number_of_batches_ends_the_training(tmp_path: Path) -> None:
    class More(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.accumulate_grad_batches = 2

    with pytest.raises(ConfigError, match=r"More changed trainer\.accumulate to 2 at step 1"):
        train(tmp_path, More(), max_steps=2)


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Holds(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"files": [Path("a")], "loss": torch.zeros(2)}

    with pytest.raises(ConfigError, match=r"the state of Holds has a pathlib\.\w+, and a checkpoint holds numbers"):
        train(tmp_path, Holds())
    assert not (tmp_path / "last.ckpt").exists()


def test_a_registered_callback_that_is_none_or_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        pass

    for name, bases, sentence in (
        ("other", (), "trainer.callbacks: mine is no Callback of Lightning, which a callback must extend"),
        ("narrow", (Callback,), "trainer.callbacks: mine cannot be built from its Config: TypeError"),
    ):
        made = type(name, bases, {"Config": dataclass(Config), "__init__": lambda self: None})
        monkeypatch.setitem(registry._components["callback"], "mine", made)
        with pytest.raises(ConfigError, match=f"^{sentence}"):
            build_callbacks([choose("callback", "mine")])


def test_a_registered_callback_is_built_from_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Callback):
        @dataclass
        class Config:
            every: int = 3

        def __init__(self, config: Config) -> None:
            self.every = config.every

    monkeypatch.setitem(registry._components["callback"], "mine", Mine)
    (built,) = build_callbacks([choose("callback", {"name": "mine", "every": 5})])
    assert isinstance(built, Mine)
    assert built.every == 5
