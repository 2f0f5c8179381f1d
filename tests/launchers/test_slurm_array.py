"""Cells as a SLURM array: the text of its script, and a stand-in for sbatch that runs it."""

import os
import sys
from pathlib import Path

import pytest

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.launchers.slurm_array import SlurmLauncher, array_script
from tests.comparison.test_cell import FAILS, SPECIFICATION, cell

SBATCH = """#!/bin/bash
[ "$1 $2" = "--parsable --wait" ] || exit 1
grep -q "#SBATCH --array=0-1%4" "$3" || exit 1
echo "7;cluster"
for task in 0 1; do SLURM_ARRAY_TASK_ID=$task bash "$3"; done
"""


def test_the_script_is_what_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [Cell(arm, 1, Path("runs/my arms") / arm / "1", CellSpec(**SPECIFICATION)) for arm in ("concat", "gated")]
    script = array_script(cells, "my arms", 8, ["--partition=long", "--requeue"])
    assert script.replace(sys.executable, "PYTHON").replace(str(tmp_path), "HERE") == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=my_arms\n"
        "#SBATCH --array=0-1%8\n"
        "#SBATCH --cpus-per-task=1\n"
        "#SBATCH --output=/dev/null\n"
        "#SBATCH --partition=long\n"
        "#SBATCH --requeue\n"
        "cd HERE || exit 1\n"
        "export OMP_NUM_THREADS=1\n"
        "export MKL_NUM_THREADS=1\n"
        "case $SLURM_ARRAY_TASK_ID in\n"
        "  0) folder='runs/my arms/concat/1'; "
        "set -- PYTHON -m fvl_lightning.comparison.worker 'runs/my arms/concat/1/cell.json' ;;\n"
        "  1) folder='runs/my arms/gated/1'; "
        "set -- PYTHON -m fvl_lightning.comparison.worker 'runs/my arms/gated/1/cell.json' ;;\n"
        "esac\n"
        '"$@" > "$folder/cell.log" 2>&1\n'
        'echo $? > "$folder/exit_code"\n'
    )


@pytest.mark.parametrize("option", ["partition=long", "--wrap=rm\n-rf", "; ls"])
def test_what_is_no_option_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="is not an sbatch option"):
        array_script([], "x", 1, [option])


def test_the_array_runs_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text(SBATCH, encoding="utf-8")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("fvl_lightning.launchers.slurm_array.POLL_SECONDS", 0.1)
    cells = [cell(tmp_path, seed=0), cell(tmp_path, seed=1, script=FAILS)]
    SlurmLauncher(tmp_path, "mine", 4, []).run(cells, lambda: None)
    assert [one.code for one in cells] == [0, 1]
    assert cells[0].finished
    cells[1].record_failure()
    assert cells[1].failure == "no space left"


def test_without_slurm_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        SlurmLauncher(tmp_path, "mine", 4, []).run([cell(tmp_path)], lambda: None)
