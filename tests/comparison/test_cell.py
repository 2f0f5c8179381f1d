"""Cells of a comparison as files and processes: what is finished, what failed, and who waits for whom."""

import io
import json
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.progress import cells_table
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.comparison.run import refuse_missing
from fvl_lightning.comparison.runner import run_cells
from fvl_lightning.core.errors import DataError
from fvl_lightning.launchers.local import LocalLauncher
from fvl_lightning.runs.folder import RunFolder

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


@pytest.mark.parametrize("code", [130, 75])
def test_a_cell_that_was_stopped_has_not_failed(tmp_path: Path, code: int) -> None:
    run([cell(tmp_path, script=f"sys.exit({code})")])
    assert cell(tmp_path).failure is None
    with pytest.raises(DataError, match=r"the report is incomplete, not trained yet: gated with seed 0$"):
        refuse_missing([cell(tmp_path)])


def test_a_stop_reaches_the_cells_that_run_and_starts_no_other(tmp_path: Path) -> None:
    waits = "(folder / 'here').touch()\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)"
    cells = [cell(tmp_path, seed=seed, script=f"exec({waits!r})") for seed in range(2)]

    def stop() -> None:
        while not (cells[0].folder / "here").exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop).start()
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
