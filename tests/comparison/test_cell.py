"""Cells of a comparison as files and processes: what is finished, what failed, and who waits for whom."""

import copy
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fvl_lightning.comparison.cell import CELL_TAG, LOCK, NOT_HASHED, Cell
from fvl_lightning.comparison.progress import cells_table
from fvl_lightning.comparison.result_files.cell import CellSpec, Failure
from fvl_lightning.comparison.run import refuse_missing
from fvl_lightning.comparison.runner import run_cells
from fvl_lightning.core.config.fields import defaults_of
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.locks import held
from fvl_lightning.launchers.base import Task
from fvl_lightning.launchers.local import LocalLauncher
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.fault_tolerance.signals import Preempted
from tests.tiny_models import experiment

SPECIFICATION: dict[str, Any] = {"stages": [{"name": "finetune", "trainer": {"max_steps": 20}}], "encoder_hash": "aa"}
FINISHES = "(folder / 'result.json').write_text(json.dumps({'cell': json.loads(text)['cell'], 'of': started}))"
FAILS = "sys.exit('first\\nno space left')"


@dataclass
class Scripted(Cell):
    """A cell whose process is a line of Python."""

    script: str = FINISHES

    @property
    def command(self) -> list[str]:
        before = "import json, sys, time; from pathlib import Path; folder = Path(sys.argv[1]); started = time.time(); "
        return [
            sys.executable, "-c", f"{before} text = (folder / 'cell.json').read_text(); {self.script}", str(self.folder)
        ]  # fmt: skip


def cell(folder: Path, arm: str = "gated", seed: int = 0, script: str = FINISHES, **changes: Any) -> Scripted:
    return Scripted(arm, seed, folder / arm / str(seed), CellSpec(**SPECIFICATION | changes), script=script)


def run(cells: list[Scripted], jobs: int = 2, fresh: bool = False, retry_failed: bool = False) -> None:
    run_cells(cells, LocalLauncher(jobs), Console(file=io.StringIO()), fresh, retry_failed)


def result(one: Cell) -> dict[str, Any]:
    """result.json as the scripts above write it."""
    return json.loads((one.folder / "result.json").read_text(encoding="utf-8"))


def test_a_finished_cell_stays_finished_until_its_configuration_changes(tmp_path: Path) -> None:
    run([cell(tmp_path)])
    before = result(cell(tmp_path))
    run([cell(tmp_path, parent_run_id="another", fresh=True)])
    assert result(cell(tmp_path)) == before
    assert not cell(tmp_path, encoder_hash="bb").finished
    run([cell(tmp_path)], fresh=True)
    assert result(cell(tmp_path))["of"] > before["of"]


@pytest.mark.slow
def test_a_failure_stops_nobody_and_is_left_until_asked_for(tmp_path: Path) -> None:
    run([cell(tmp_path, seed=0, script=FAILS), cell(tmp_path, seed=1), cell(tmp_path, seed=2)], jobs=1)
    cells = [cell(tmp_path, seed=seed) for seed in range(3)]
    assert [one.finished for one in cells] == [False, True, True]
    with pytest.raises(DataError, match=r"1 of 3 cells failed \(gated with seed 0: no space left\); `--retry-failed`"):
        refuse_missing(cells)
    run(cells)
    assert not cells[0].finished
    run(cells, retry_failed=True)
    assert cells[0].finished
    refuse_missing(cells)


def test_a_log_has_a_line_for_every_cell_that_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run([cell(tmp_path, seed=1)])
    cells = [cell(tmp_path, seed=0, script=FAILS), cell(tmp_path, seed=1), cell(tmp_path, seed=2)]
    caplog.clear()  # the first run is in it where another test left the level at INFO
    with caplog.at_level("INFO"):
        run(cells, jobs=1)
    assert caplog.messages == [
        "2 cells to run, 1 of 3 finished before",
        f"gated with seed 0: failed, see {cells[0].log}, 1 of 3 cells finished",
        "gated with seed 2: finished, 2 of 3 cells finished",
    ]


def test_what_a_signal_ended_is_said(tmp_path: Path) -> None:
    run([cell(tmp_path, script="import os; os.kill(os.getpid(), 9)")])
    assert cell(tmp_path).failure == "ended by signal 9"


def test_the_reason_is_no_line_of_torch(tmp_path: Path) -> None:
    """Of several ranks, one says why; those that end with it may warn of that."""
    warns = "[rank0]:[W1130 12:00:00.5 ProcessGroupGloo.cpp:12] Connection closed by peer"
    run([cell(tmp_path, script=f"sys.exit('no space left\\n{warns}')")])
    assert cell(tmp_path).failure == "no space left"


@pytest.mark.parametrize("code", [130, 75])
def test_a_cell_that_was_stopped_has_not_failed(tmp_path: Path, code: int) -> None:
    run([cell(tmp_path, script=f"sys.exit({code})")])
    assert cell(tmp_path).failure is None
    with pytest.raises(DataError, match=r"the report is incomplete, not trained yet: gated with seed 0$"):
        refuse_missing([cell(tmp_path)])


@pytest.mark.parametrize("finishes", [True, False], ids=["and finishes it", "and is killed"])
def test_a_cell_that_another_process_runs_is_waited_for(finishes: bool, tmp_path: Path) -> None:
    """As an earlier start of the comparison, whose parent was killed, or another one at the same moment."""
    one = cell(tmp_path)
    one.prepare()

    def other() -> None:
        with held(one.folder / LOCK, "held"):
            (tmp_path / "holds").touch()
            time.sleep(1.0)
            if finishes:
                (one.folder / "result.json").write_text(json.dumps({"cell": one.key, "of": "other"}), encoding="utf-8")
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    while not (tmp_path / "holds").exists():
        time.sleep(0.02)
    run([cell(tmp_path), cell(tmp_path, seed=1)])
    process.join()
    assert (result(cell(tmp_path))["of"] == "other") is finishes
    assert cell(tmp_path, seed=1).finished
    refuse_missing([cell(tmp_path)])


def test_a_result_counts_more_than_a_failure_beside_it(tmp_path: Path) -> None:
    """Whoever recorded the failure did not know of the process that went on."""
    one = cell(tmp_path)
    run([one])
    one.code = 2
    one.record_failure()
    assert not (one.folder / "failure.json").exists()
    failure = Failure(one.key, "is being trained by another process", 2)
    (one.folder / "failure.json").write_text(json.dumps(failure.plain()), encoding="utf-8")
    before = result(one)
    for retry_failed in (False, True):
        run([cell(tmp_path)], retry_failed=retry_failed)
        refuse_missing([cell(tmp_path)])
    assert result(one) == before
    one.prepare()
    assert result(one) == before, "another process was faster"


def test_the_process_of_a_cell_leaves_alone_what_another_does_or_has_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fvl_lightning.comparison import worker

    monkeypatch.setattr(worker, "LOCK_SECONDS", 0.0)
    monkeypatch.setattr(worker, "quiet_libraries", lambda: None)
    one = cell(tmp_path)
    one.prepare()
    locked = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with held(one.folder / LOCK, "held"):
            locked.set()
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert locked.wait(30)
    assert worker.main(one.folder / "cell.json") == 75
    assert f"is being run by another process (process {process.pid})" in capsys.readouterr().err
    process.kill()
    process.join()
    (one.folder / "result.json").write_text(json.dumps({"cell": one.key}), encoding="utf-8")
    assert worker.main(one.folder / "cell.json") == 0


def test_a_cell_that_a_signal_ended_with_the_comparison_has_not_failed(tmp_path: Path) -> None:
    """A cluster signals every process; one of a cell may not have begun to listen."""

    class Stopped(LocalLauncher):
        def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
            for task, code in zip(tasks, (-15, 2), strict=True):
                task.prepare()
                task.code = code
            raise Preempted

    cells = [cell(tmp_path, seed=seed) for seed in range(2)]
    with pytest.raises(Preempted):
        run_cells(cells, Stopped(2), Console(file=io.StringIO()), False, False)
    assert [one.failure for one in cells] == [None, "exit code 2"]


def test_cells_that_do_not_stop_are_killed_by_a_third_ctrl_c(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGINT, lambda *_: 0)\n(folder / 'here').touch()\nwhile True: time.sleep(60)"
    one = cell(tmp_path, script=f"import signal; exec({deaf!r})")

    def stop() -> None:
        while not (one.folder / "here").exists():
            time.sleep(0.05)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run([one])
    assert one.code == -signal.SIGKILL
    assert one.failure is None


def test_a_cell_ends_with_the_comparison(tmp_path: Path) -> None:
    """kill -9 of the comparison alone leaves no process that trains for nobody."""
    listens = "from fvl_lightning.training.fault_tolerance.signals import handle_from_start\nhandle_from_start(True)\n"
    waits = f"{listens}(folder / 'pid').write_text(str(__import__('os').getpid()))\ntime.sleep(600)"
    one = cell(tmp_path, script=f"exec({waits!r})")
    process = multiprocessing.get_context("fork").Process(target=run, args=([one],))
    process.start()
    file, end = one.folder / "pid", time.monotonic() + 30
    while not (file.is_file() and file.read_text(encoding="utf-8")):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.join()
    while Path(f"/proc/{file.read_text(encoding='utf-8')}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stop_reaches_the_cells_that_run_and_starts_no_other(tmp_path: Path) -> None:
    waits = "(folder / 'here').touch()\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)"
    cells = [cell(tmp_path, seed=seed, script=f"exec({waits!r})") for seed in range(2)]

    def stop() -> None:
        while not (cells[0].folder / "here").exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(cells, jobs=1)
    assert [one.code for one in cells] == [130, None]
    assert not cells[1].folder.exists()


def test_the_table_says_what_every_cell_does(tmp_path: Path) -> None:
    cells = [cell(tmp_path, arm, seed) for arm in ("concat", "gated") for seed in (0, 1)]
    run([cells[0]])
    cells[0] = cell(tmp_path, "concat", 0)  # as the next start finds it
    cells[1].prepare()
    training = RunFolder.create(cells[1].folder, "finetune", {"stage": {"name": "finetune"}})
    lines = [json.dumps({"step": step, "train/loss": 2.5}) for step in (5, 10)]
    training.metrics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    cells[1].started = (time.monotonic() - 20, 0)
    cells[2].script = FAILS
    run([cells[2]])
    stream = io.StringIO()
    Console(file=stream, width=200).print(cells_table(cells))
    shown = stream.getvalue()
    assert "1 of 4 cells finished" in shown
    for words in ("seed 0", "seed 1", "finetune, 10/20, loss 2.500, 2", " s left", "failed, see", "waiting"):
        assert words in shown, shown


# Cells of earlier versions.


def stored(folder: Path, spec: CellSpec, **changes: Any) -> str:
    """Writes a finished cell as the version wrote it whose specification has these changes; returns its key."""
    parts = {**spec.plain(), **changes}
    key = config_hash({name: part for name, part in parts.items() if name not in NOT_HASHED})
    folder.mkdir(exist_ok=True)
    for name, values in (("cell.json", parts | {"cell": key}), ("result.json", {"cell": key})):
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return key


def without(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The configuration of a version that did not have these dotted keys yet."""
    changed = copy.deepcopy(plain)
    for key in sorted(keys, key=lambda key: -key.count(".")):
        *outer, name = key.split(".")
        del reduce(dict.__getitem__, outer, changed)[name]
    return changed


def test_a_field_that_came_later_leaves_finished_cells_finished(tmp_path: Path) -> None:
    """Also where all fields of all sections and components that have their default were added since."""
    stage = experiment(tmp_path, "finetune", "conversation", trainer={"max_steps": 20})
    plain = as_plain(stage)
    spec = CellSpec(stages=[plain, plain], encoder_hash="aa")
    every = [key for key, was_so_before in defaults_of(stage).items() if was_so_before()]
    assert len(every) > 50
    for keys in (["trainer.deterministic"], ["trainer.loggers"], ["tracking"], every):
        earlier = stored(tmp_path, spec, stages=[plain, without(plain, *keys)])
        one = Cell("gated", 0, tmp_path, copy.deepcopy(spec))
        assert one.finished, keys
        assert one.key == one.spec.tags[CELL_TAG] == earlier


def test_another_value_than_the_default_is_another_cell(tmp_path: Path) -> None:
    stage = experiment(tmp_path, "finetune", "conversation", trainer={"max_steps": 20, "deterministic": True})
    plain = as_plain(stage)
    spec = CellSpec(stages=[plain], encoder_hash="aa")
    assert Cell("gated", 0, tmp_path, spec).key == stored(tmp_path, spec)
    plain = without(plain, "trainer.deterministic")
    others: list[dict[str, Any]] = [
        {"stages": [plain]},
        {"stages": [{**plain, "of a newer version": 1}]},
        {"stages": [plain, plain]},
        {"stages": [{"name": 1}]},
        {"encoder_hash": "bb"},
        {"of a newer version": 1},
    ]
    for changes in others:
        stored(tmp_path, spec, **changes)
        assert not Cell("gated", 0, tmp_path, spec).finished, changes
    default = CellSpec(stages=[plain | {"trainer": {**plain["trainer"], "deterministic": False}}], encoder_hash="aa")
    earlier = stored(tmp_path, default, stages=[plain])
    assert Cell("gated", 0, tmp_path, default).key == earlier
    default.fresh = True
    assert Cell("gated", 0, tmp_path, default).key != earlier, "what is trained anew has a key of its own"
