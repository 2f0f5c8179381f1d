"""`fvl launch`: what it starts on one machine, on each of several, and through SLURM, of which there are stand-ins."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USAGE_ERROR, ConfigError
from fvl_lightning.launchers.ranks import Machine, run_ranks
from fvl_lightning.launchers.secrets import refuse_secrets
from fvl_lightning.launchers.slurm_job import Job
from tests.conftest import ROOT, Run

FINETUNE = "experiments/demo/finetune.yaml"
SHARDED = "trainer.strategy=fsdp"
SCRIPT = """#!/bin/bash
#SBATCH --job-name=my_run
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --output=runs/my_run.launch.log
#SBATCH --partition=long
cd HERE || exit 1
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE=16 LOCAL_WORLD_SIZE=8
srun --kill-on-bad-exit=0 --wait=600 --gpu-bind=none ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \\
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID; exec "$@"' rank \\
    PYTHON -m fvl_lightning train experiments/demo/finetune.yaml trainer.strategy=fsdp 'name=my run' trainer.nodes=2 \
trainer.devices=8 --resume-or-start
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
SBATCH = """#!/bin/bash
[ "$1" = "--parsable" ] || exit 1
SLURM_JOB_ID=7 SLURM_JOB_NODELIST='node[1-2]' bash "$2"
echo $? > code
echo "7;cluster"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> srun_options; shift; done
for rank in 0 1 2 3; do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) SLURM_NODEID=$((rank / 2)) "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; [ $code -gt $highest ] && highest=$code; done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "$@" >> requeued; fi
"""
PLACE = "$RANK $LOCAL_RANK $GROUP_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR"


def stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Programs of a cluster, found before all others."""
    (folder / "bin").mkdir()
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def job(command: Sequence[str], *options: str, gpus: bool = True) -> Job:
    """Two machines with two processes each."""
    return Job("mine", 2, 2, gpus, command, Path("runs"), options)


def said(fvl_here: Run, *words: str, folder: Path = ROOT) -> str:
    """The one sentence that the words are refused with."""
    done = fvl_here(folder, "launch", *words)
    assert done.returncode == EXIT_USAGE_ERROR
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_script_is_what_it_was(fvl_here: Run) -> None:
    options = ("--nodes", "2", "--gpus-per-node", "8", "--slurm", "--sbatch", "--partition=long", "--dry-run")
    done = fvl_here(ROOT, "launch", FINETUNE, SHARDED, "name=my run", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(sys.executable, "PYTHON").replace(str(ROOT), "HERE") == SCRIPT


def test_options_of_sbatch_win_over_ours() -> None:
    text = job(["true"], "--gpus-per-node=h100:2", "--signal=USR1@900").text()
    assert "--gres" not in text
    assert [line for line in text.splitlines() if "--signal" in line] == ["#SBATCH --signal=USR1@900"]
    assert "gpu" not in job(["true"], gpus=False).text()


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (EXIT_USAGE_ERROR, False), (EXIT_REQUEUE, True), (EXIT_INTERRUPTED, False)]
)
def test_a_job_tells_every_process_its_rank_and_is_requeued_where_one_was_preempted(
    code: int, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one of the four ends with the code."""
    monkeypatch.chdir(tmp_path)
    stand_ins(tmp_path, monkeypatch, sbatch=SBATCH, srun=SRUN, scontrol=SCONTROL)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    record = f'echo "{PLACE} $MASTER_PORT $1" > rank$RANK; [ $RANK = 2 ] && exit {code}; exit 0'
    assert job(["bash", "-c", record, "x", "$(touch harm) 'two  words'"]).submit() == "7"
    assert (tmp_path / "code").read_text().strip() == str(code)
    for rank, (local, node) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        seen = (tmp_path / f"rank{rank}").read_text().strip()
        assert seen == f"{rank} {local} {node} 4 2 node1 10007 $(touch harm) 'two  words'"
    assert not (tmp_path / "harm").exists()
    assert "--cpus-per-task=6" in (tmp_path / "srun_options").read_text().split()
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine.launch.sh"], "written beside, then renamed"


def test_a_launch_through_slurm_says_where_to_look(
    workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins(workspace, monkeypatch, sbatch="#!/bin/bash\necho 12\n")
    done = fvl_here(workspace, "launch", FINETUNE, "name=mine", "--slurm")
    assert done.stdout == "submitted as job 12: runs/mine.launch.sh, which logs to runs/mine.launch.log\n"
    assert subprocess.run(["bash", "-n", "runs/mine.launch.sh"], cwd=workspace, check=False).returncode == 0


def test_a_job_that_sbatch_refuses_is_one_sentence(
    workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins(workspace, monkeypatch, sbatch="#!/bin/bash\nexit 1\n")
    assert "sbatch rejected runs/finetune.launch.sh" in said(fvl_here, FINETUNE, "--slurm", folder=workspace)


def test_one_machine_is_what_train_does(fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = fvl_here(ROOT, "launch", FINETUNE, SHARDED, "name=my run", "--gpus-per-node", "2", "--dry-run")
    words = "trainer.strategy=fsdp 'name=my run' trainer.devices=2 --resume-or-start"
    assert done.stdout == f"fvl train {FINETUNE} {words}\n"
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "fvl_lightning.cli.train.run_ranks", lambda devices, words: started.append((devices, *words)) or EXIT_REQUEUE
    )
    with pytest.raises(SystemExit, match=str(EXIT_REQUEUE)):
        fvl_here(ROOT, "launch", FINETUNE, SHARDED, "--gpus-per-node", "2")
    assert started == [(2, "train", FINETUNE, SHARDED, "trainer.devices=2", "--resume-or-start")]


def test_several_machines_are_shown_their_commands_which_start_their_ranks(
    fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, list[str], Machine]] = []
    monkeypatch.setattr("fvl_lightning.cli.launch.run_ranks", lambda *given: started.append(given) or EXIT_REQUEUE)
    options = ("--nodes", "2", "--gpus-per-node", "4", "--rendezvous", "node1:29500")
    shown = fvl_here(ROOT, "launch", FINETUNE, SHARDED, *options, "--dry-run").stdout.splitlines()
    assert not started
    for number, line in enumerate(shown):
        assert fvl_here(ROOT, *shlex.split(line)[1:]).returncode == EXIT_REQUEUE
        devices, words, machine = started[number]
        assert (devices, machine) == (4, Machine(number, 2, "node1", 29500))
        assert words == ["train", FINETUNE, SHARDED, "trainer.nodes=2", "trainer.devices=4", "--resume-or-start"]
    assert len(started) == 2


def test_the_ranks_of_a_machine_know_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/bash\necho "{PLACE} $MASTER_PORT $*" > {tmp_path}/rank$RANK\n[ $RANK != 3 ] || exit 75\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert run_ranks(2, ["train"], Machine(1, 3, "node1", 29500)) == EXIT_REQUEUE
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank2", "rank3"]
    assert (tmp_path / "rank3").read_text() == "3 1 1 6 2 node1 29500 -m fvl_lightning train\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["experiments/demo/finetun.yaml"], "experiments/demo/finetun.yaml"),
        ([FINETUNE, "--nodes", "0"], "Invalid value for '--nodes'"),
        ([FINETUNE, "--gpus-per-node", "4"], "trainer.strategy: single uses one device"),
        ([FINETUNE, SHARDED, "trainer.devices=4", "--gpus-per-node", "8"], "--gpus-per-node: it is 8, but trainer.dev"),
        ([FINETUNE, SHARDED, "trainer={nodes: 4}", "--nodes", "8"], "--nodes: it is 8, but trainer.nodes is 4"),
        ([FINETUNE, SHARDED, "--nodes", "4"], "--nodes: 4 machines need --slurm, or --rendezvous HOST:PORT"),
        ([FINETUNE, SHARDED, "--nodes", "4", "--rendezvous", "node1"], "--rendezvous: 'node1' is not HOST:PORT"),
        ([FINETUNE, SHARDED, "--nodes", "4", "--rendezvous", "node1:70000"], "'node1:70000' is not HOST:PORT"),
        ([FINETUNE, SHARDED, "--nodes", "4", "--rendezvous", "n:1"], "each of the 4 machines needs its number, 0 to 3"),
        ([FINETUNE, SHARDED, "--nodes", "4", "--rendezvous", "n:1", "--node-rank", "4"], "are 0 to 3, not 4"),
        ([FINETUNE, SHARDED, "--nodes", "2", "--rendezvous", "n:1", "--node-rank", "5", "--dry-run"], "not 5"),
        ([FINETUNE, "--rendezvous", "node1:29500"], "--rendezvous: it is for several machines, leave it out"),
        ([FINETUNE, "--slurm", "--node-rank", "0"], "--node-rank: --slurm finds the machines itself, leave it out"),
        ([FINETUNE, "--sbatch", "--partition=long"], "--sbatch: --sbatch is for --slurm, leave it out"),
        ([FINETUNE, "--slurm", "--sbatch", "-p long"], "--sbatch: '-p long' is not an sbatch option"),
        ([FINETUNE, "--slurm", "--sbatch", "--nodes=3"], "--sbatch: --nodes is set by --nodes and --gpus-per-node"),
        ([FINETUNE, "--slurm", "output=my runs"], "output: 'my runs' cannot be written in an #SBATCH line"),
        ([FINETUNE, "--slurm"], "--slurm: there is no sbatch on this machine"),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(
    words: list[str], sentence: str, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(ROOT / "docs"))
    assert sentence in said(fvl_here, *words)


@pytest.mark.parametrize(
    "word",
    [
        "tracking.uri=https://me:hunter22@mlflow.lab.org",
        "--export=ALL,HF_TOKEN=hf_x",
        "--export=AWS_SECRET_ACCESS_KEY=1/2",
        "data.password=hunter22",
        "name=hf_abcdefghijklmnopqrstuvwxyz",
        "fusion.note=what-the-environment-has",
    ],
)
def test_a_secret_is_refused_and_not_repeated(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "what-the-environment-has")
    with pytest.raises(ConfigError) as caught:
        refuse_secrets([word])
    assert str(caught.value).startswith(f"{word.partition('=')[0]}: this argument contains a password or key")
    for secret in ("hunter22", "hf_", "1/2", "environment-has"):
        assert secret not in str(caught.value)


def test_words_of_every_day_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises no ConfigError."""
    monkeypatch.setenv("HF_TOKEN", "")
    refuse_secrets(
        ["encoder.pooled_token=drop", "language_model.tokenizer=data/demo/tokenizer", "name=secret-1", "seed=1",
         "tracking.uri=postgresql://me@host/db", "data.root=s3://bucket/a:b", "--export=ALL"]
    )  # fmt: skip


def test_no_secret_of_the_environment_is_written(
    workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22hunter22")
    stand_ins(workspace, monkeypatch, sbatch="#!/bin/bash\necho $MLFLOW_TRACKING_PASSWORD > seen\necho 7\n")
    assert fvl_here(workspace, "launch", FINETUNE, "--slurm").returncode == 0
    assert (workspace / "seen").read_text() == "hunter22hunter22\n", "it travels by the environment"
    assert "hunter22" not in (workspace / "runs" / "finetune.launch.sh").read_text()
    assert "hunter22" not in said(fvl_here, FINETUNE, "name=hunter22hunter22", "--slurm", folder=workspace)
