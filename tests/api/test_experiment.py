"""load_experiment and with_overrides: words and Python values are one thing, and mistakes name the overrides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvl_lightning.api.experiment import build, checked, load_experiment
from fvl_lightning.api.run import Run, open_run, train
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig, LoraConfig
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import ROOT, TINY

FILE = ROOT / "experiments" / "demo" / "finetune.yaml"


@pytest.fixture(scope="module")
def experiment() -> ExperimentConfig:
    return load_experiment(FILE)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["fusion={name: gated, gate: sigmoid}"], {"fusion": {"name": "gated", "gate": "sigmoid"}}),
        (["trainer.max_steps=20", "seed=3"], {"trainer.max_steps": 20, "seed": 3}),
        (["optimizer.betas=[0.9, 0.99]"], {"optimizer": {"betas": (0.9, 0.99)}}),
        (["init_from=[runs/a, runs/b]"], {"init_from": [Path("runs/a"), Run(RunFolder(Path("runs/b")))]}),
        (["lora={rank: 4}"], {"lora": LoraConfig(rank=4)}),
        (["lora=null", "name='07'"], {"lora": None, "name": "07"}),
        (["seed=2", "optimizer.clip_norm=0.5"], {"seed": np.int64(2), "optimizer.clip_norm": np.float32(0.5)}),
    ],
)
def test_words_and_values_are_one_thing(experiment: ExperimentConfig, words: list[str], values: Any) -> None:
    changed = experiment.with_overrides(values)
    assert as_plain(changed) == as_plain(load_experiment(FILE, *words))
    assert as_plain(changed.with_overrides()) == as_plain(changed)


def test_the_experiment_itself_stays_as_it_was(experiment: ExperimentConfig) -> None:
    before = as_plain(experiment)
    experiment.with_overrides("fusion=gated", {"data.workers": 2})
    assert as_plain(experiment) == before


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("fusion=gate", "fusion in the overrides: unknown fusion 'gate'"),
        ({"trainer": {"max_stps": 1}}, "trainer.max_stps in the overrides: unknown key 'max_stps'"),
        ({"trainer.max_steps": "x"}, "trainer.max_steps in the overrides: expected a whole number, found 'x'"),
        ("trainer", "'trainer' in the overrides is not key=value"),
        (["trainer.max_steps=3"], "an override is 'key=value' or a mapping of dotted keys to values, not ['trainer."),
    ],
)
def test_a_mistake_names_the_overrides(experiment: ExperimentConfig, override: Any, sentence: str) -> None:
    for change in (experiment.with_overrides, lambda one: load_experiment(FILE, one)):
        with pytest.raises(ConfigError) as error:
            change(override)
        assert str(error.value).startswith(sentence)


def test_adapters_need_a_base_that_is_kept(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    experiment = load_experiment("experiments/demo/finetune.yaml", *TINY, "trainable.language_model=lora")
    with pytest.raises(ConfigError, match="init_from: adapters without a run folder need one whole model"):
        build(experiment)


def test_a_run_that_is_finished(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(asked)
    run = open_run("runs/tiny")
    assert (run.status, run.mlflow_run_id, run.scores()) == ("finished", None, {})
    assert run.components["encoder"].trainable == 0 < run.components["fusion"].trainable
    assert run.curves()["train/loss"] == run.curve("train/loss")
    assert sum(curve[-1][1] for curve in run.source_weights().values()) == pytest.approx(1)
    assert train(run.experiment, resume_or_start=True) == run
    with pytest.raises(ConfigError, match=r"^resume=True: runs/tiny is finished; start a new run without resume=True$"):
        train(run.experiment, resume=True)
    with pytest.raises(ConfigError, match="resume, resume_or_start: pass only one"):
        train(run.experiment, resume=True, resume_or_start=True)
    with pytest.raises(DataError, match="did you mean runs/tiny"):
        open_run("runs/tyni")


def test_a_path_is_not_an_experiment() -> None:
    for use in (train, build):
        with pytest.raises(ConfigError, match=r"found 'finetune.yaml'; load_experiment\(path\) makes one from a file"):
            use("finetune.yaml")  # type: ignore[arg-type, operator]


def changed(key: str, value: Any) -> ExperimentConfig:
    """Returns an experiment whose field was set after it was loaded."""
    found: Any = load_experiment(FILE, "fusion=gated")
    one, (*path, name) = found, key.split(".")
    for part in path:
        one = getattr(one, part)
    setattr(one, name, value)
    return found


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("trainer.max_steps", -1, "trainer.max_steps in the experiment must be at least 1, not -1"),
        ("trainer.max_stps", 3, "trainer.max_stps as it was set: unknown key 'max_stps', .*mean 'max_steps'"),
        ("fusion", "gate", "fusion in the experiment: unknown fusion 'gate', .*did you mean 'gated'"),
        ("fusion.config.gat", "x", "fusion.gat as it was set: unknown key 'gat'"),
        ("trainer.loggers", ["csvv"], "trainer.loggers in the experiment: unknown logger 'csvv'"),
        ("seed", "many", "seed in the experiment: expected a whole number, found 'many'"),
    ],
)
def test_a_field_that_was_set_is_checked_before_it_is_used(key: str, value: Any, sentence: str) -> None:
    for use in (train, build):
        with pytest.raises(ConfigError, match=f"^{sentence}"):
            use(changed(key, value))  # type: ignore[operator]


def test_a_field_that_was_set_may_be_written_as_in_yaml() -> None:
    assert checked(changed("fusion", "attention")).fusion.name == "attention"
    assert as_plain(checked(changed("seed", 3))) == as_plain(load_experiment(FILE, "fusion=gated", "seed=3"))


def test_an_experiment_is_shown_in_one_line(experiment: ExperimentConfig) -> None:
    assert repr(experiment).startswith("<experiment finetune: stage=finetune, encoder=florence2, fusion=concat, ")
    assert len(repr(experiment)) < 150
