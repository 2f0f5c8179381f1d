"""A run's folder: its name, what it remembers, and how it is found again."""

import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError, DataError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import RunIdentity
from fvl_lightning.runs.tracking import run_name
from fvl_lightning.tracking.metrics_log import JsonlLogger, read_metrics
from fvl_lightning.training.checkpointing.last_and_previous import TRAINING_KEYS, CheckpointFiles
from tests.tiny_models import experiment

REMEDY = "; give what it was, or start a new run without --resume"
CONFIG: dict[str, Any] = {
    "name": "finetune", "stage": {"name": "finetune"}, "trainer": {"max_steps": 10, "batch_size": 2}
}


def create(output: Path, name: str = "finetune", **info: Any) -> RunFolder:
    run = RunFolder.create(output, name, CONFIG | {"name": name})
    run.record(**info)
    return run


def wanted(**changes: Any) -> RunIdentity:
    """The configuration, in which the number of devices is a matter of place."""
    placement = {f"trainer.{name}" for name in ("strategy", "devices", "nodes", "batch_size")}
    return RunIdentity(CONFIG | changes, placement=placement)


def sentence(error: type[UserError], call: Any, folder: Path) -> str:
    """The message of an error, which must be one line; the test's own folder is taken out."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "")


def test_a_new_run_has_its_files(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "finetune", CONFIG)
    assert run.path == tmp_path / "runs" / "finetune"
    assert run.checkpoints.is_dir()
    assert run.config == CONFIG
    assert run.info["status"] == "running"
    assert run.info["stage"] == "finetune"
    assert len(run.info["config_hash"]) == 12
    assert not run.finished
    assert not list(run.path.glob("*.tmp")) + list(run.path.glob(".*")), "something half written was left"


def test_a_name_that_is_taken_is_numbered(tmp_path: Path) -> None:
    assert [create(tmp_path).path.name for _ in range(3)] == ["finetune", "finetune-2", "finetune-3"]


def test_records_add_up(tmp_path: Path) -> None:
    run = create(tmp_path, steps=3)
    run.record(status="finished", steps=4)
    assert RunFolder(run.path).info | {"config_hash": ""} == {
        "status": "finished", "name": "finetune", "stage": "finetune", "config_hash": "", "steps": 4
    }
    assert run.finished


def test_the_latest_is_the_highest_number(tmp_path: Path) -> None:
    """By number, not by alphabet, and never a run of a longer name."""
    for _ in range(11):
        create(tmp_path)
    create(tmp_path, "finetune-gated")
    (tmp_path / "finetune-99").mkdir()
    assert RunFolder.latest(tmp_path, "finetune").path.name == "finetune-11"
    assert RunFolder.latest(tmp_path, "finetune-gated").path.name == "finetune-gated"


NAMES = ["lora[r=8]", "a*b?", "sweep/b", "sweep[x]/lr=[1]", "50%#?", "-x", "a b .", "größe", "{a,b}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    """Runs are found again by their very name, the newest last, wherever their folders are."""
    for neighbour in ("lora8", "lora=", "aab!", "sweep/c", "a"):
        create(tmp_path, neighbour)
    made = [create(tmp_path, name).path for _ in range(11)]
    assert made[0] == tmp_path / name
    assert made[10] == tmp_path / f"{name}-11"
    assert [run.path for run in RunFolder.named(tmp_path, name)] == made
    assert RunFolder.latest(tmp_path, name).path == made[10]
    RunFolder(made[3]).record(status="finished")
    found = RunFolder.reusable(tmp_path, name, wanted(name=name))
    assert found is not None
    assert found.path == made[3]


def test_names_that_differ_in_case_are_two(tmp_path: Path) -> None:
    create(tmp_path, "Lora")
    create(tmp_path, "lora")
    assert [run.info["name"] for run in RunFolder.named(tmp_path, "lora")] == ["lora"]


def test_folders_that_are_made_at_once_are_others(tmp_path: Path) -> None:
    """Processes that start together, as those of a sweep do, each get a folder of their own."""
    context = multiprocessing.get_context("fork")
    for trial in range(10):
        output, barrier, found = tmp_path / str(trial), context.Barrier(4), context.SimpleQueue()
        starts = [context.Process(target=create_at, args=(barrier, found, output)) for _ in range(4)]
        for process in starts:
            process.start()
        paths = {found.get() for _ in starts}
        for process in starts:
            process.join()
        assert paths == {"finetune", "finetune-2", "finetune-3", "finetune-4"}


def create_at(barrier: Any, found: Any, output: Path) -> None:
    barrier.wait()
    try:
        found.put(create(output).path.name)
    except UserError as error:
        found.put(str(error))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for output, name, why in (
        ("runs", "x" * 300, "File name too long"), ("file", "x", "File exists"), ("file/runs", "x", "Not a directory"),
    ):  # fmt: skip
        message = sentence(DataError, lambda output=output, name=name: create(tmp_path / output, name), tmp_path)
        assert message == f"output: the run folder /{output}/{name} cannot be created ({why})"


def test_the_latest_of_none(tmp_path: Path) -> None:
    create(tmp_path, "pretrain")
    message = sentence(DataError, lambda: RunFolder.latest(tmp_path, "finetune"), tmp_path)
    assert message.startswith("--resume: no run named finetune in")


def test_opened_by_folder_and_by_id(tmp_path: Path) -> None:
    run = create(tmp_path / "runs" / "demo", mlflow_run_id="0123abcd")
    create(tmp_path / "runs" / "demo", mlflow_run_id="ffff")
    assert RunFolder.open(str(run.path)).path == run.path
    assert RunFolder.open("0123abcd", tmp_path / "runs").path == run.path


def test_what_is_no_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    create(runs, "concat")
    (runs / "stray").mkdir()
    stray = sentence(DataError, lambda: RunFolder.open(str(runs / "stray"), runs), tmp_path)
    assert stray.startswith("/runs/stray is not a run folder (run.json is missing)")
    near = sentence(DataError, lambda: RunFolder.open(str(runs / "concta"), runs), tmp_path)
    assert near == "/runs/concta is no run folder and no run id; did you mean /runs/concat?"
    far = sentence(DataError, lambda: RunFolder.open("0" * 32, runs), tmp_path)
    assert far == f"{'0' * 32} is no run folder and no run id; runs in /runs: /runs/concat"
    nothing = sentence(DataError, lambda: RunFolder.open("x", tmp_path / "empty"), tmp_path)
    assert nothing.endswith("runs in /empty: none")


def test_a_run_of_the_demo_that_was_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for reference, command in {
        "runs/demo/encoder_pretrain": "`make demo` trains the runs in runs/demo",
        "runs/demo": "`make demo` trains",
        "./runs/demo/concat/finetune": "`make demo` trains",
        "runs/demo-quick/concat/pretrain": "`fvl demo --quick` trains the runs in runs/demo-quick",
    }.items():
        with pytest.raises(DataError, match=re.escape(command)):
            RunFolder.open(reference)
    Path("runs/demo/other").mkdir(parents=True)
    with pytest.raises(DataError, match="runs in runs: none"):
        RunFolder.open("runs/demo/encoder_pretrain")


def test_a_broken_record(tmp_path: Path) -> None:
    run = create(tmp_path)
    (run.path / "run.json").write_text('{"status": ', encoding="utf-8")
    assert sentence(DataError, lambda: run.info, tmp_path) == "/finetune/run.json is not valid JSON"


def test_a_run_goes_on_with_its_own_configuration_only(tmp_path: Path) -> None:
    run = create(tmp_path)
    changed = wanted(trainer={"max_steps": 20, "batch_size": 2})
    message = sentence(ConfigError, lambda: run.check_resumable(changed), tmp_path)
    assert message == "--resume: /finetune was started with another configuration, at trainer.max_steps" + REMEDY
    message = sentence(DataError, lambda: run.check_resumable(wanted()), tmp_path)
    assert message == "--resume: /finetune stopped before its first checkpoint; start it without --resume"
    run.last_checkpoint.write_bytes(b"")
    run.check_resumable(wanted())


def test_what_computes_nothing_may_change(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.last_checkpoint.write_bytes(b"")
    logged = wanted(trainer={**CONFIG["trainer"], "log_every": 1})
    with pytest.raises(ConfigError, match=r"at trainer\.log_every"):
        run.check_resumable(logged)
    free = dataclasses.replace(logged, nothing={"trainer.log_every"})
    run.check_resumable(free)
    assert RunFolder.reusable(tmp_path, "finetune", free) is None, "it has no whole checkpoint"
    run.record(status="finished")
    assert RunFolder.reusable(tmp_path, "finetune", free) == run


def test_what_is_read_under_the_same_name_must_be_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = create(tmp_path, inputs={"the code of mine.py": "1", "the content of the shards": "a"}, status="finished")
    run.last_checkpoint.write_bytes(b"")
    same = dataclasses.replace(wanted(), inputs={"the code of mine.py": "1", "the files of base": "not known before"})
    edited = dataclasses.replace(wanted(), inputs={"the code of mine.py": "2", "the content of the shards": "b"})
    run.check_resumable(same)
    assert RunFolder.reusable(tmp_path, "finetune", same) == run
    message = sentence(DataError, lambda: run.check_resumable(edited), tmp_path)
    assert message.startswith("--resume: since /finetune was started, the code of mine.py and the content of the shar")
    assert RunFolder.reusable(tmp_path, "finetune", edited) is None
    assert "finetune is not taken: the code of mine.py and the content of the shards changed since" in caplog.text


def without(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A plain configuration that has not got these dotted keys."""
    plain = copy.deepcopy(plain)
    for key in keys:
        *outer, name = key.split(".")
        del functools.reduce(dict.__getitem__, outer, plain)[name]
    return plain


def test_a_key_that_was_not_there_yet_had_its_default(tmp_path: Path) -> None:
    found = experiment(tmp_path, "finetune", "conversation")
    found.data = choose("data", {"name": "shards", "datasets": {"mine.a": {"root": "there"}, "b": {"root": "here"}}})
    identity = RunIdentity.of(found)
    pictures = ("data.image_fit", "data.scaled_decode", "encoder.decoder")
    older = without(identity.config, *pictures, "language_model.chat_date", "trainer.keep_best", "chosen")
    del older["data"]["datasets"]["b"]["shards"], older["normalize"]["output"]
    assert identity.changed_keys(older) == {"normalize.output"}, "the tiny model sets it"
    found.normalize.output = False
    identity = RunIdentity.of(found)
    assert identity.changed_keys(older) == set()
    assert identity.changed_keys({**older, "data": {**older["data"], "image_fit": "pad"}}) == {"data.image_fit"}
    assert identity.changed_keys(without(older, "data.sequence_length")) == set()
    found.data.config.image_fit = "pad"
    assert RunIdentity.of(found).changed_keys(older) == {"data.image_fit"}, "it has not got the default of before"
    found.data.config.image_fit, found.encoder = "stretch", None
    assert RunIdentity.of(found).changed_keys(older) == {"encoder"}


def test_the_clock_said_the_day_before_there_was_a_chat_date(tmp_path: Path) -> None:
    found = experiment(tmp_path, "finetune", "conversation")
    found.language_model.config.chat_template = "{{ strftime_now('%d %B %Y') }}{{ messages[0]['content'] }}"
    identity = RunIdentity.of(found)
    assert identity.changed_keys(without(identity.config, "language_model.chat_date")) == {"language_model.chat_date"}
    found.language_model.config.chat_template = "{{ messages[0]['content'] }}"
    identity = RunIdentity.of(found)
    assert identity.changed_keys(without(identity.config, "language_model.chat_date")) == set()


def test_a_run_goes_on_on_other_devices_with_the_same_samples_per_step(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.last_checkpoint.write_bytes(b"")
    two = {"strategy": "fsdp", "devices": 2, "nodes": 1}
    run.check_resumable(wanted(trainer={**CONFIG["trainer"], **two, "batch_size": 1}))
    more = wanted(trainer={**CONFIG["trainer"], **two})
    message = sentence(ConfigError, lambda: run.check_resumable(more), tmp_path)
    assert message.endswith("with another configuration, at trainer.devices, trainer.nodes, trainer.strategy" + REMEDY)


def test_a_curve_counts_a_repeated_step_once(tmp_path: Path) -> None:
    """A resumed run logs the steps since its checkpoint again; what it says last is what happened."""
    run = create(tmp_path)
    assert run.curve("train/loss") == []
    journal = JsonlLogger(run.metrics)
    for step, loss in [(10, 3.0), (20, 2.0), (30, 1.5), (20, 2.25), (30, 1.75)]:
        journal.log_metrics({"train/loss": loss}, step)
    journal.log_metrics({"validation/loss": 9.0}, 30)
    assert run.curve("train/loss") == [(10, 3.0), (20, 2.25), (30, 1.75)]
    assert run.curve("validation/loss") == [(30, 9.0)]
    assert run.curve("train/los") == []
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [10, 20, 30, 20, 30, 30]


def hold_until_killed(path: Path, ready: Connection) -> None:
    """Trains, as far as others can see; a child of it, such as a loader's worker, lives on."""
    with RunFolder(path).held():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        ready.send(child.pid)
        time.sleep(60)


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    run = create(tmp_path)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_until_killed, args=(run.path, there))
    process.start()
    orphan = here.recv()
    try:
        with pytest.raises(DataError, match="is being trained by another process"), run.held():
            pass
    finally:
        process.kill()
        process.join()
    with run.held():
        pass
    os.kill(orphan, signal.SIGKILL)


def test_the_run_to_go_on_with(tmp_path: Path) -> None:
    """Of one name and configuration: the newest that is finished or has a whole checkpoint."""

    def found() -> str | None:
        run = RunFolder.reusable(tmp_path, "finetune", wanted())
        return run.path.name if run else None

    def save(run: RunFolder) -> None:
        CheckpointFiles().save_checkpoint(dict.fromkeys(TRAINING_KEYS), run.last_checkpoint)

    assert found() is None
    first, second, third = (create(tmp_path) for _ in range(3))
    other = create(tmp_path, "finetune-lora")
    save(other)
    assert found() is None
    save(first)
    assert found() == "finetune"
    save(second)
    save(second)
    second.last_checkpoint.write_bytes(b"cut")
    assert found() == "finetune-2"
    third.record(status="finished")
    assert found() == "finetune-3"
    third.record(config_hash="of another configuration")
    (third.path / "config.yaml").write_text("{name: finetune, stage: {name: pretrain}}", encoding="utf-8")
    assert found() == "finetune-2"


def test_a_journal_goes_on_after_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlLogger(path).log_metrics({"train/loss": 3.0}, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "train/lo')
    assert [entry["step"] for entry in read_metrics(path)] == [1]
    journal = JsonlLogger(path)
    journal.log_metrics({"train/loss": 2.0}, 2)
    journal.note(2, skipped=["a"])
    assert path.read_bytes().startswith(whole + b'{"step": 2, "time"')
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 2]


def test_a_journal_is_json_whatever_the_numbers_are(tmp_path: Path) -> None:
    def no_json(word: str) -> None:
        raise AssertionError(word)

    path = tmp_path / "metrics.jsonl"
    JsonlLogger(path).log_metrics({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.5, "e": 2}, 1)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=no_json)
    (entry,) = read_metrics(path)
    assert math.isnan(entry["a"])
    assert [entry[name] for name in "bcde"] == [math.inf, -math.inf, 1.5, 2]


def test_a_journal_waits_for_a_disk_that_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The system takes a part of a line and then no more."""
    path = tmp_path / "metrics.jsonl"
    journal = JsonlLogger(path)
    journal.log_metrics({"train/loss": 3.0}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        journal.log_metrics({"train/loss": 2.0}, 2)
        journal.log_metrics({"train/loss": 1.0}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry["step"] for entry in read_metrics(path)] == [1]
    assert len([message for message in caplog.messages if "cannot be written (File too large)" in message]) == 1
    journal.log_metrics({"train/loss": 0.5}, 4)
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("output", "fusion", "tags", "name"),
    [
        ("runs", "gated", {}, "gated/seed 3/finetune-2"),
        ("runs/ablation", "concat", {}, "concat/seed 3/ablation/finetune-2"),
        ("runs", None, {}, "encoder/seed 3/finetune-2"),
        ("runs/demo/wide/3", "gated", {"fvl.comparison": "demo", "fvl.arm": "wide"}, "wide/seed 3/finetune-2"),
        ("runs/demo/encoders/3", None, {"fvl.comparison": "demo"}, "encoder/seed 3/finetune-2"),
    ],
)
def test_names_tell_runs_apart(output: str, fusion: str | None, tags: dict[str, str], name: str) -> None:
    experiment = ExperimentConfig(fusion=fusion and SimpleNamespace(name=fusion), seed=3, output=output)
    assert run_name(experiment, RunFolder(Path(output) / "finetune-2"), tags) == name
