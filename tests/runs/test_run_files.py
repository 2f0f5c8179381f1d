"""Damaged and edited files of a run folder: repaired, left out with a warning, or refused in a sentence."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import RunIdentity
from fvl_lightning.tracking.metrics_log import JsonlLogger, MetricsReader, read_metrics

CONFIG: dict[str, Any] = {"name": "r", "stage": {"name": "finetune"}, "trainer": {"max_steps": 10, "batch_size": 2}}
WANTED = RunIdentity(CONFIG)
SAMPLE = ("", "3", "[]", "{", "null", "{stage: 3}", "\x00", "a: [", "? [a]\n: b", "\u2028", "!!python/object:os.x {}")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that is finished."""
    run = RunFolder.create(tmp_path, "r", CONFIG)
    run.record(status="finished")
    return run


@pytest.mark.parametrize("text", SAMPLE)
def test_a_broken_configuration_is_written_again_by_a_resume(
    text: str, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file = run.path / "config.yaml"
    whole = file.read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    assert RunFolder.reusable(run.path.parent, "r", WANTED) == run
    assert file.read_text(encoding="utf-8") == whole
    assert caplog.messages[-1] == f"{file} was changed or damaged since the run was started; it is written again"


@pytest.mark.parametrize("text", SAMPLE)
def test_a_broken_configuration_is_refused_where_nobody_knows_it(
    text: str, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (run.path / "config.yaml").write_text(text, encoding="utf-8")
    if text == "{stage: 3}":
        assert run.config == {"stage": 3}
        assert "was changed since the run was started" in caplog.messages[-1]
    else:
        with pytest.raises(DataError, match=r"config\.yaml (is missing or no valid YAML|holds no configuration)"):
            _ = run.config
    other = RunIdentity(CONFIG | {"seed": 1})
    assert RunFolder.reusable(run.path.parent, "r", other) is None
    with pytest.raises(UserError):
        RunFolder.latest(run.path.parent, "r", other).check_resumable(other)


def test_an_edited_configuration_is_said_once(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    file = run.path / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("batch_size: 2", "batch_size: 4"), encoding="utf-8")
    assert run.config["trainer"]["batch_size"] == 4
    assert run.config["trainer"]["batch_size"] == 4
    wanted = f"{file} was changed since the run was started: this is not the configuration that was trained"
    assert caplog.messages == [wanted]


@pytest.mark.parametrize(
    "values",
    [[], 3, "text", None, {"status": 3}, {"name": ["r"]}, {"init_from": {}}, {"init_from": [{"run": 3}]},
     {"components": {"encoder": 3}}, {"scores": {"words": "high"}}, {"asking": []}, {"seconds": "long"}],
    ids=str,
)  # fmt: skip
def test_a_record_of_another_type_is_refused(values: Any, run: RunFolder) -> None:
    (run.path / "run.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json"):
        _ = run.info
    with pytest.raises(DataError, match=r"run\.json"):  # it may be the run that is wanted
        RunFolder.named(run.path.parent, "r")
    assert RunFolder.create(run.path.parent, "r2", CONFIG | {"name": "r2"}) in RunFolder.named(run.path.parent, "r2")


def test_a_key_that_a_record_lacks_is_a_sentence(run: RunFolder) -> None:
    with pytest.raises(DataError, match="lacks 'encoder_hash'; the run stopped before it was written"):
        _ = run.info["encoder_hash"]


BAD_LINES = (
    b'{"step": 2, "time": 5, "tr\n', b'{"step": 2, "ti{"step": 3, "time": 6, "train/loss": 1.0}\n', b"3\n", b"{}\n",
    b"null\n", b"[]\n", b'{"step": "2", "time": 5, "a": 1.0}\n', b'{"step": 2, "time": 5, "train/loss": "x"}\n',
    b'{"step": 2, "time": 5, "train/loss": [1]}\n', b'{"step": 2, "time": 5, "train/loss": null}\n', b"\x00\x00\x00\n",
    b'{"step": 2, "time": 5, "note": 3}\n', b'{"step": -1, "time": 5}\n', b"\xff\xfe\n", b"\n", b"[" * 100_000 + b"\n",
    b'{"step": 1' + b"0" * 400 + b', "time": 5, "a": 1}\n', b'{"step": 2, "time": 5, "a": 1' + b"0" * 400 + b"}\n",
)  # fmt: skip


def test_bad_lines_of_a_metrics_log_are_left_out_and_counted(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    log = JsonlLogger(run.metrics)
    log.log_metrics({"train/loss": 2.0}, 1)
    with run.metrics.open("ab") as file:
        file.writelines(BAD_LINES)
    log.log_metrics({"train/loss": 1.0, "train/rate": float("nan")}, 3)
    with run.metrics.open("ab") as file:
        file.write(b"\x00" * 50)  # what a power cut leaves of lines that were not on the disk
    assert [entry["step"] for entry in read_metrics(run.metrics)] == [1, 3]
    assert run.curve("train/loss") == [(1, 2.0), (3, 1.0)]
    assert caplog.messages == [f"{run.metrics}: {len(BAD_LINES)} lines are damaged and left out"]
    log.log_metrics({"train/loss": 0.5}, 4)
    assert [entry["step"] for entry in MetricsReader(run.metrics).new()] == [1, 3, 4]


@pytest.mark.parametrize(
    "values",
    [3, [], {}, {"uri": "sqlite:///x"}, {"tags": 3}, {"dataset": {}}, {"results": {"a": "b"}}, {"tables": {"a": 3}}],
    ids=str,
)
def test_a_damaged_description_is_refused_by_a_sync(values: Any, run: RunFolder) -> None:
    dataset = {"name": "d", "digest": "0", "source": "s"}
    texts = dict.fromkeys(("uri", "experiment", "run_name", "key"), "x")
    whole: dict[str, Any] = texts | {key: {} for key in ("tags", "params", "config")}
    whole |= {"parent_run_id": None, "dataset": dataset}
    text = json.dumps(whole | values if isinstance(values, dict) and values else values)
    run.tracking.write_text(text, encoding="utf-8")
    if values == {"uri": "sqlite:///x"}:
        assert run.read_tracking().uri == "sqlite:///x"
        return
    with pytest.raises(DataError, match=r"tracking\.json"):
        run.read_tracking()


def test_a_neighbour_with_a_broken_record_is_passed_over(tmp_path: Path, run: RunFolder) -> None:
    for name in ("rest", "r-lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{", encoding="utf-8")
    assert RunFolder.named(tmp_path, "r") == [run]
    with pytest.raises(DataError, match="is no run folder and no run id"):
        RunFolder.open("0123", tmp_path)


@pytest.mark.usefixtures("run")
def test_a_run_whose_configuration_cannot_be_read_is_not_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "r" / "config.yaml").write_text("3", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert RunFolder.reusable(tmp_path, "r", RunIdentity(CONFIG | {"seed": 1})) is None
    assert caplog.messages[-1].startswith(f"{tmp_path / 'r'} is not taken: {tmp_path / 'r' / 'config.yaml'} holds no")


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ('"status": "finished"', '"status": "running"', "running"),
        ('"status": "finished"', '"status": "finishes"', None),
        ('"name": "', '"name": "x', None),
    ],
)
def test_a_person_may_set_the_status_and_nothing_else(run: RunFolder, old: str, new: str, status: str | None) -> None:
    run.record(status="finished")
    file = run.path / "run.json"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    if status is None:
        with pytest.raises(DataError, match="it was damaged or edited"):
            _ = RunFolder(run.path).info
    else:
        assert RunFolder(run.path).info["status"] == status
