"""Parts that the sbatch scripts of trainings and comparisons share: options, job names, and a task of srun per rank."""

import re
import shlex
from collections.abc import Sequence

from fvl_lightning.core.errors import ConfigError

RESERVED_OPTIONS = ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "gpus-per-task", "array")
"""sbatch options that determine the ranks; the kit sets them itself."""
EXIT_GRACE_SECONDS = 600
"""Time that other ranks have to end after one rank has ended: they may wait for it, or still write the model."""
AS_RANK = 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID; exec "$@"'
"""Command of each srun task: sets the variables of torch.distributed from SLURM's."""


def check_options(options: Sequence[str], where: str) -> None:
    """Checks that each is one sbatch option that fits on a line of its own; ConfigError at `where` otherwise."""
    for option in options:
        if not re.fullmatch(r"--[a-z][\w-]*(=\S+)?", option):
            raise ConfigError(f"{where}: '{option}' is not an sbatch option; write for instance --partition=long")


def job_name(name: str) -> str:
    """Returns `name` without characters that an #SBATCH line could misread."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def refuse_reserved(options: Sequence[str], where: str, keys: str) -> None:
    """Raises ConfigError for an option that determines the number of ranks, which the keys in `keys` set."""
    for option in options:
        if (name := option[2:].partition("=")[0]) in RESERVED_OPTIONS:
            raise ConfigError(f"{where}: --{name} is set by {keys}; leave it out")


def sbatch_lines(own: Sequence[str], options: Sequence[str]) -> list[str]:
    """Returns the #SBATCH lines: the kit's `own` options, unless the user's `options` name them too, and these."""
    chosen = {option.partition("=")[0] for option in options}
    kept = [option for option in own if option.partition("=")[0] not in chosen]
    return [f"#SBATCH {option}" for option in (*kept, *options)]


def gpu_option(per_node: int, options: Sequence[str]) -> list[str]:
    """Returns the option that asks for GPUs on each machine; none where the user's options ask for GPUs themselves."""
    chosen = (option.partition("=")[0] for option in options)
    own = any(name == "--gres" or name.startswith("--gpus") for name in chosen)
    return [] if own else [f"--gres=gpu:{per_node}"]


def meeting_lines(nodes: int, per_node: int) -> list[str]:
    """Returns the lines that set where the ranks of a job meet, and how many they are."""
    return [
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
        f"export MASTER_ADDR MASTER_PORT WORLD_SIZE={nodes * per_node} LOCAL_WORLD_SIZE={per_node}",
    ]


def srun_lines(gpus: bool) -> list[str]:
    """Returns the lines that start a task per rank; the command follows.

    Every rank is a task of srun, which ends with the highest exit code of all ranks; a launcher in between would
    hide it.
    """
    step = ["srun", "--kill-on-bad-exit=0", f"--wait={EXIT_GRACE_SECONDS}"]
    step += ["--gpu-bind=none"] if gpus else []
    return [
        f'{shlex.join(step)} ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} \\',
        f"    bash -c {shlex.quote(AS_RANK)} rank \\",
    ]
