"""Cells as a SLURM array: the text of its script, and a stand-in for sbatch that runs it."""

import os
import sys
from pathlib import Path

import pytest

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.launchers.slurm_array import SlurmLauncher, array_script
from tests.comparison.test_cell import FAILS, SPECIFICATION, cell
from tests.launchers.test_launch import SCONTROL, SRUN, stand_ins

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


def with_resources(folder: Path, **resources: int) -> list[Cell]:
    """A cell on GPUs."""
    stage = {"name": "finetune", "trainer": {"max_steps": 20, "accelerator": "auto"}}
    return [Cell("concat", 1, folder, CellSpec(stages=[stage], resources=ResourcesConfig(**resources)))]


def test_a_cell_of_one_gpu_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cells = with_resources(Path("runs/a"), threads=4, memory_gb=64)
    script = array_script(cells, "a", 8, ["--partition=long"])
    assert script.replace(sys.executable, "PYTHON").replace(str(tmp_path), "HERE") == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=a\n"
        "#SBATCH --array=0-0%8\n"
        "#SBATCH --cpus-per-task=4\n"
        "#SBATCH --gres=gpu:1\n"
        "#SBATCH --mem=64G\n"
        "#SBATCH --output=/dev/null\n"
        "#SBATCH --partition=long\n"
        "cd HERE || exit 1\n"
        "export OMP_NUM_THREADS=4\n"
        "export MKL_NUM_THREADS=4\n"
        "case $SLURM_ARRAY_TASK_ID in\n"
        "  0) folder=runs/a; set -- PYTHON -m fvl_lightning.comparison.worker runs/a/cell.json ;;\n"
        "esac\n"
        '"$@" > "$folder/cell.log" 2>&1\n'
        'echo $? > "$folder/exit_code"\n'
    )
    assert "gpu:1" not in array_script(cells, "a", 8, ["--gpus-per-node=h100:1", "--mem-per-cpu=8G"])
    assert "--mem=" not in array_script(cells, "a", 8, ["--gpus-per-node=h100:1", "--mem-per-cpu=8G"])


def test_a_cell_of_two_machines_is_a_task_of_srun_per_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cells = with_resources(Path("runs/a"), devices=8, nodes=2, threads=6)
    script = array_script(cells, "a", 8, ["--time=2:00:00"])
    assert script.replace(sys.executable, "PYTHON").replace(str(tmp_path), "HERE") == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=a\n"
        "#SBATCH --array=0-0%8\n"
        "#SBATCH --nodes=2\n"
        "#SBATCH --ntasks-per-node=8\n"
        "#SBATCH --cpus-per-task=6\n"
        "#SBATCH --gres=gpu:8\n"
        "#SBATCH --output=/dev/null\n"
        "#SBATCH --time=2:00:00\n"
        "cd HERE || exit 1\n"
        "export OMP_NUM_THREADS=6\n"
        "export MKL_NUM_THREADS=6\n"
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))\n"
        "export MASTER_ADDR MASTER_PORT WORLD_SIZE=16 LOCAL_WORLD_SIZE=8\n"
        "case $SLURM_ARRAY_TASK_ID in\n"
        "  0) folder=runs/a; set -- PYTHON -m fvl_lightning.comparison.worker runs/a/cell.json ;;\n"
        "esac\n"
        "srun --kill-on-bad-exit=0 --wait=600 --gpu-bind=none "
        '${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \\\n'
        "    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID; "
        "exec \"$@\"' rank \\\n"
        '    "$@" > "$folder/cell.log" 2>&1\n'
        'echo $? > "$folder/exit_code"\n'
    )
    with pytest.raises(ConfigError, match=r"--nodes is set by resources\.devices and resources\.nodes; leave it out"):
        array_script(cells, "a", 8, ["--nodes=3"])


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


def test_the_ranks_of_a_cell_are_tasks_of_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks on two machines; one of them fails, and the cell has its code and its last line."""
    program = 'import os; assert os.environ["RANK"] != "3", "rank 3 of " + os.environ["WORLD_SIZE"]'
    sbatch = SBATCH.replace("0-1%4", "0-0%4").replace("for task in 0 1", "export SLURM_JOB_ID=7; for task in 0")
    programs = {"sbatch": sbatch, "srun": SRUN, "scontrol": SCONTROL}
    monkeypatch.chdir(tmp_path)
    stand_ins(tmp_path, monkeypatch, **programs)
    monkeypatch.setattr("fvl_lightning.launchers.slurm_array.POLL_SECONDS", 0.1)
    one = cell(tmp_path, script=f"exec({program!r})", resources=ResourcesConfig(devices=2, nodes=2))
    SlurmLauncher(tmp_path, "mine", 4, []).run([one], lambda: None)
    one.record_failure()
    assert (one.code, one.failure) == (1, "AssertionError: rank 3 of 4")


def test_without_slurm_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        SlurmLauncher(tmp_path, "mine", 4, []).run([cell(tmp_path)], lambda: None)
