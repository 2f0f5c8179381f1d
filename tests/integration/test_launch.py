"""`fvl launch` to the end: a job that SLURM's stand-ins warn, requeue and finish, and two machines that are one."""

import os
import signal
import socket
from pathlib import Path

import pytest

from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from tests.conftest import TINY_DATA, Run
from tests.integration.runs import UNTRACKED, start, wait_for

JOB = (
    "experiments/demo/finetune.yaml", *TINY_DATA, UNTRACKED, "name=job", "trainer.strategy=ddp", "trainer.batch_size=4",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=1",
)  # fmt: skip
CLUSTER = {
    "sbatch": "SLURM_JOB_ID=7 SLURM_JOB_NODELIST=here bash $2 >> job.log 2>&1; echo $? >> codes; echo 7",
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi',
    # The signal that --signal asks for goes to every task.
    "srun": """while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" > tasks.tmp && mv tasks.tmp tasks
highest=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; [ $code -gt $highest ] && highest=$code; done
exit $highest""",
}


@pytest.mark.slow
def test_a_job_saves_is_requeued_and_finishes(workspace: Path, fvl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "bin").mkdir()
    for name, body in CLUSTER.items():
        (workspace / "bin" / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (workspace / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{workspace / 'bin'}:{os.environ['PATH']}")
    words = (*JOB, "trainer.max_steps=60", "trainer.validate_every=60", "--gpus-per-node", "2", "--slurm")
    submitted = start(workspace, "launch", *words)
    run = RunFolder(workspace / "runs" / "job")
    wait_for(lambda: len(list(read_metrics(run.metrics))) > 1, submitted, 300)
    for task in (workspace / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    out, err = submitted.communicate(timeout=300)
    said = (workspace / "job.log").read_text()
    assert submitted.returncode == 0, err
    assert out.startswith("submitted as job 7: runs/job.launch.sh")
    assert (workspace / "codes").read_text() == "75\n", said
    assert (workspace / "requeued").read_text() == "requeue 7\n"
    assert run.info["status"] == "interrupted"
    done = fvl(workspace, "launch", *words)
    assert done.returncode == 0, done.stderr
    assert (workspace / "codes").read_text() == "75\n0\n", (workspace / "job.log").read_text()
    assert run.finished
    assert (workspace / "requeued").read_text() == "requeue 7\n"


@pytest.mark.slow
def test_two_machines_make_one_run(workspace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = (*JOB, "trainer.max_steps=3", "--nodes", "2", "--gpus-per-node", "1", "--rendezvous", place, "--node-rank")
    machines = [start(workspace, "launch", *words, str(number)) for number in range(2)]
    said = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert [out.count("finished: ") for out, _ in said] == [1, 0], "the first rank speaks for all"
    run = RunFolder(workspace / "runs" / "job")
    assert run.finished
    assert [path.name for path in (workspace / "runs").iterdir()] == ["job"]
