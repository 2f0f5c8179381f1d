"""A build that is killed, at any moment, and started again ends with the same bytes as one that was not."""

import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.building import processes as build_processes
from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.building.processes import prepare_all
from datamodules.building.resume_log import ResumeLog
from datamodules.building.row_to_sample import BuiltSample
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import DataError

ROOT = Path(__file__).parents[3]
PLUGIN = str(Path(__file__).with_name("building_source.py"))
SCRIPT = """
import json, sys
from datamodules.building.config import BuildConfig
from datamodules.building.builder import build_shards
from fvl_lightning.core.config.loading import check_config
config = check_config(BuildConfig, json.loads(sys.argv[1]))
print("started", flush=True)
build_shards(config)
"""


def values(folder: Path, rows: int, processes: int = 1) -> dict[str, Any]:
    """A recipe of many small shards of three splits."""
    return {
        "source": {"name": "building_test", "rows": rows, "side": 24},
        "splits": {"train": 0.7, "validation": 0.25, "test": 0.05},
        "samples_per_shard": 9,
        "bytes_per_shard": 30720,
        "plugins": [PLUGIN],
        "output": str(folder),
        "processes": processes,
    }


def build(folder: Path, rows: int) -> dict[str, bytes]:
    """Builds in this process; every file there is then, hidden ones too."""
    build_shards(check_config(BuildConfig, values(folder, rows)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def die_at(moment: int, folder: Path, rows: int) -> None:
    """Builds, and ends the process without a word before or after one of its calls that change the disk."""
    moments = itertools.count(1)

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(moments) == moment:
                os._exit(9)
            result = function(*args, **kwargs)
            if next(moments) == moment:
                os._exit(9)
            return result

        return counted

    for name in ("fsync", "replace", "unlink", "rmdir"):
        setattr(os, name, counting(getattr(os, name)))
    build(folder, rows)
    os._exit(0)


@pytest.mark.slow
def test_dying_before_and_after_every_change_of_the_disk(tmp_path: Path) -> None:
    rows = 16
    whole = build(tmp_path / "whole", rows)
    fork = multiprocessing.get_context("fork")
    for moment in itertools.count(1):
        child = fork.Process(target=die_at, args=(moment, tmp_path / str(moment), rows))
        child.start()
        child.join()
        assert build(tmp_path / str(moment), rows) == whole
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
    assert moment > 50


def kill_some(folder: Path, rows: int, times: int, processes: int) -> dict[str, bytes]:
    """Starts the build as a session of its own and kills all of it at a random moment, so many times; then builds."""
    rng = random.Random(times * 100 + processes)
    for _ in range(times):
        command = [sys.executable, "-c", SCRIPT, json.dumps(values(folder, rows, processes))]
        started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert started.stdout is not None
        assert started.stdout.readline() == "started\n"
        # The processes take a second or more until they are there; without them all is over sooner.
        time.sleep(rng.uniform(0.0, 0.3) if processes == 1 else rng.uniform(0.0, 4.0))
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
    return build(folder, rows)


@pytest.mark.slow
def test_killing_a_build(tmp_path: Path) -> None:
    assert kill_some(tmp_path / "killed", 300, 1, processes=2) == build(tmp_path / "whole", 300)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_killing_a_build_ten_times(tmp_path: Path, processes: int) -> None:
    assert kill_some(tmp_path / "killed", 2000, 10, processes) == build(tmp_path / "whole", 2000)


@pytest.mark.slow
def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, json.dumps(values(tmp_path / "killed", 100_000, 2))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as started:
        assert started.stdout is not None
        started.stdout.readline()
        while not list((tmp_path / "killed").glob("*.tar")):
            assert started.poll() is None, "the build ended by itself"
            time.sleep(0.05)
        started.kill()
        # The pipe is at its end once every process that inherited it is gone.
        assert started.stdout.read() == b""


def test_a_second_build_beside_a_running_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shards" / ".building").mkdir(parents=True)
    with (
        ResumeLog(tmp_path / "shards" / ".building"),
        pytest.raises(DataError, match=r"another process is building into .*shards at this moment"),
    ):
        build(tmp_path / "shards", 40)


def stopped(folder: Path) -> None:
    """A build that died after some shards."""
    child = multiprocessing.get_context("fork").Process(target=die_at, args=(60, folder, 40))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert list(folder.glob("*.tar"))


def test_what_was_stopped_goes_on_only_as_it_was(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(DataError, match=r"holds another build \(differing in source.rows\)"):
        build(tmp_path, 41)
    next(tmp_path.glob("*.tar")).unlink()
    with pytest.raises(DataError, match=r"000000.tar is gone or changed; delete .* and build again"):
        build(tmp_path, 40)


def test_what_goes_on_says_from_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path)
    shards = len(list(tmp_path.glob("*.tar")))
    with caplog.at_level("INFO"):
        build(tmp_path, 40)
    (told,) = caplog.messages
    rows = re.fullmatch(rf"the build of {tmp_path} goes on behind (\d+) rows, {shards} shards are done", told)
    assert rows is not None, told
    assert 9 <= int(rows[1]) < 40


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    stopped(tmp_path)
    journal = tmp_path / ".building" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"position"', '"place"'))
    with pytest.raises(DataError, match=r"journal.jsonl is damaged; delete .*\.building and start the build again"):
        build(tmp_path, 40)


@pytest.mark.slow
def test_few_chunks_are_under_way(tmp_path: Path) -> None:
    """What bounds the memory: an endless source is read only so far ahead of what has been used up."""
    source = check_config(BuildConfig, values(tmp_path, 100)).source
    taken: list[int] = []

    def jobs() -> Any:
        for number in itertools.count():
            taken.append(number)
            yield number, range(number, number + 2)

    plugins = [PLUGIN]
    prepared = prepare_all(source.component(source.config), jobs(), {"train": 1.0}, 2, tmp_path, plugins)
    for wanted in range(10):
        number, outcomes = next(prepared)
        assert number == wanted
        assert len(list(outcomes)) == 2
        assert len(taken) <= number + 2 * 2
    prepared.close()


def test_a_large_chunk_goes_by_way_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other bound: of a chunk of any size only so much is held."""
    source = check_config(BuildConfig, values(tmp_path, 100)).source
    worker = build_processes._Worker(
        source.component(source.config), {"train": 1.0}, tmp_path, multiprocessing.get_context("spawn").Event()
    )
    monkeypatch.setattr(build_processes, "_worker", worker)
    piped = build_processes._prepare(3, range(30))
    assert isinstance(piped.members, bytes)
    for limit in (len(piped.members) - 1, 5000, 0):
        monkeypatch.setattr(build_processes, "PIPED", limit)
        filed = build_processes._prepare(3, range(30))
        assert filed.members == tmp_path / "chunk-00000003"
        assert list(filed.outcomes()) == list(piped.outcomes())
        assert sum(isinstance(outcome, BuiltSample) for outcome in filed.outcomes()) == 24
        filed.remove()
        assert not list(tmp_path.iterdir())
