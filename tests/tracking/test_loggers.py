"""The loggers of `trainer.loggers`: how they are named, what they get, and what they need."""

import csv
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.loggers import base
from fvl_lightning.tracking.loggers.base import LoggedRun, build_loggers, check_loggers
from fvl_lightning.tracking.loggers.csv import CsvLogger
from tests.conftest import TINY, Run

LIGHTNINGS_CSV = "lightning.pytorch.loggers.CSVLogger"
PLUGIN = """
from dataclasses import dataclass

from lightning import Callback
from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.registry import register


@register("callback", "counting")
class CountingCallback(Callback):
    @dataclass
    class Config:
        start: int = 0

    def __init__(self, config):
        self.count = config.start

    def on_train_batch_end(self, trainer, stage, *_):
        self.count += 1
        self.log("mine/count", float(self.count))


@register("logger", "lines")
class LinesLogger(Logger):
    name = version = ""

    @dataclass
    class Config:
        file: str = "lines.txt"

    def __init__(self, config, run):
        super().__init__()
        self.path = run.folder / config.file

    def log_hyperparams(self, params):
        self.path.write_text(params["name"] + "\\n")

    def log_metrics(self, metrics, step):
        with self.path.open("a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")
"""


def with_loggers(*entries: Any) -> ExperimentConfig:
    return ExperimentConfig().with_overrides({"trainer.loggers": list(entries)})


def logged_run(folder: Path, step: int = 0) -> LoggedRun:
    return LoggedRun(folder, "runs/a", "key", step, {"name": "a", "trainer": {"max_steps": 3}})


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (None, [{"name": "mlflow"}]),
        ("csv", [{"name": "csv", "seconds": 10.0}]),
        ({"csv": {"seconds": 2}}, [{"name": "csv", "seconds": 2.0}]),
        ([{"name": "csv", "seconds": 2}, "mlflow"], [{"name": "csv", "seconds": 2.0}, {"name": "mlflow"}]),
        ([{"csv": None}, LIGHTNINGS_CSV], [{"name": "csv", "seconds": 10.0}, {LIGHTNINGS_CSV: {}}]),
        ([{LIGHTNINGS_CSV: {"name": "x"}}], [{LIGHTNINGS_CSV: {"name": "x"}}]),
        ([], []),
    ],
)
def test_the_forms_of_a_list(written: Any, plain: Any) -> None:
    changes = {} if written is None else {"trainer.loggers": written}
    experiment = ExperimentConfig().with_overrides(changes)
    assert as_plain(experiment.trainer.loggers) == plain
    assert as_plain(experiment.with_overrides()) == as_plain(experiment)
    assert experiment.tracked == any(one.get("name") == "mlflow" for one in plain)
    assert not experiment.with_overrides("tracking.enabled=false").tracked


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("csvv", "trainer.loggers in the overrides: unknown logger 'csvv', .*did you mean 'csv'"),
        ({"csv": {"second": 1}}, "trainer.loggers in the overrides: csv.second: unknown key 'second'.*'seconds'"),
        ({"csv": {"seconds": -1}}, "trainer.loggers in the overrides: csv.seconds must be at least 0"),
        (3, "expected a name, or one name with its arguments as in {csv: {}}, found 3"),
        ({"csv": 3}, "expected a name, or one name with its arguments"),
        ({"csv": {}, "mlflow": {}}, "expected a name, or one name with its arguments"),
    ],
)
def test_a_mistake_names_the_list(entry: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        with_loggers(entry)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (["csv", "csv"], "csv stands twice"),
        ([{LIGHTNINGS_CSV: {"folder": "x"}}], "unknown argument 'folder', allowed: .*save_dir"),
        (["lightning.pytorch.callbacks.Timer"], "is no Logger of Lightning"),
    ],
)
def test_what_cannot_log_is_found_before_a_run_begins(entries: list[Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.loggers: .*{sentence}"):
        check_loggers(with_loggers(*entries).trainer.loggers)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"^trainer.loggers: {name} needs the package {name}: pip install {name} "):
        check_loggers(with_loggers(name).trainer.loggers)


def test_a_table_has_each_step_once_over_all_starts(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = [{"loss": 3.0}, {"loss": "NaN"}, {"note": {}}, {"loss": 9.0}]
    lines = [{"step": step, "time": 0, **values} for step, values in zip((1, 2, 2, 3), logged, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    table = CsvLogger(CsvLogger.Config(seconds=100), logged_run(tmp_path, step=2))
    table.log_metrics({"loss": 2.0, "epoch": 0}, 3)
    table.log_metrics({"validation/loss": 4.0}, 3)
    assert rows(tmp_path / "metrics.csv")[-1] == {"step": "3", "loss": "2.0"}, "the second value waits"
    table.finalize("success")
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "3.0", "validation/loss": ""},
        {"step": "2", "loss": "nan", "validation/loss": ""},
        {"step": "3", "loss": "2.0", "validation/loss": "4.0"},
    ]


def test_a_disk_that_is_full_is_a_warning_and_other_errors_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (one,) = build_loggers(with_loggers(LIGHTNINGS_CSV).trainer.loggers, logged_run(tmp_path))
    assert isinstance(one, CSVLogger)
    assert one.save_dir == str(tmp_path)

    def fails(self: Any, error: Exception) -> None:
        raise error

    error: list[Exception] = [OSError(28, "No space left on device")]
    monkeypatch.setattr(type(one.experiment), "log_metrics", lambda *_: fails(*[None, *error]))
    caplog.set_level(logging.WARNING, "fvl_lightning")
    one.log_metrics({"loss": 1.0}, 1)
    assert "CSVLogger lacks values (No space left on device); metrics.jsonl has them" in caplog.text
    error[0] = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        one.log_metrics({"loss": 1.0}, 1)


def test_every_logger_of_a_training_gets_every_value(workspace: Path, fvl_here: Run) -> None:
    (workspace / "mine.py").write_text(PLUGIN, encoding="utf-8")
    (workspace / "mine.yaml").write_text(
        "base: experiments/demo/finetune.yaml\nplugins: [mine.py]\nname: mine\ntrainer:\n  log_every: 1\n"
        f"  loggers: [csv, lines, {{{LIGHTNINGS_CSV}: {{name: theirs}}}}]\n"
        "  callbacks: [{counting: {start: 5}}, {lightning.pytorch.callbacks.EarlyStopping: {monitor: train/loss}}]\n",
        encoding="utf-8",
    )
    done = fvl_here(workspace, "train", "mine.yaml", *TINY)
    assert done.returncode == 0, done.stderr
    run = RunFolder(workspace / "runs" / "mine")
    assert not run.tracking.exists()
    for file in (run.path / "metrics.csv", run.path / "theirs" / "version_0" / "metrics.csv"):
        for name in ("train/loss", "validation/loss", "learning_rate/fusion", "mine/count"):
            found = [(int(row["step"]), float(row[name])) for row in rows(file) if row[name]]
            assert found == run.curve(name), (file, name)
    assert run.curve("mine/count") == [(0, 6.0), (1, 7.0), (2, 8.0)], "Lightning counts from 0"
    lines = (run.path / "lines.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "mine"
    assert any(line.startswith("3 ") and "'train/loss'" in line for line in lines)
    assert "epoch" not in run.curves()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra tensorboard")
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (one,) = build_loggers(with_loggers("tensorboard").trainer.loggers, logged_run(tmp_path))
    one.log_metrics({"train/loss": 2.0}, 3)
    one.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.0)]
