"""`fvl launch`: a training on one machine or many, by itself or as a SLURM job."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fvl_lightning.cli.train import train
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.config.merging import parse_override
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import say, terminal
from fvl_lightning.launchers.ranks import Machine, run_ranks
from fvl_lightning.launchers.secrets import refuse_secrets
from fvl_lightning.launchers.slurm_job import Job


def launch(
    experiment: Annotated[Path, typer.Argument(help="Experiment file, such as experiments/demo/finetune.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value overrides, such as trainer.strategy=fsdp.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of machines; by default trainer.nodes.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes per machine; by default trainer.devices.")
    ] = None,
    rendezvous: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the first machine; the port must be free, and reachable from the others."),
    ] = None,
    node_rank: Annotated[int | None, typer.Option(min=0, help="The number of this machine, from 0.")] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit a SLURM job, which is requeued until the training is finished.")
    ] = False,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="An option of sbatch, such as --partition=long; repeat it for several.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands or the job script, and start nothing.")
    ] = False,
) -> None:
    """Start or resume a training on one machine or several (`fvl train --resume-or-start` on each).

    Without SLURM, run it on every machine, with the same `--rendezvous` and its own `--node-rank`.

    Example: `fvl launch experiments/demo/finetune.yaml trainer.strategy=fsdp --nodes 2 --gpus-per-node 8 --slurm`
    """
    refuse_secrets([str(experiment), *(overrides or ()), *(sbatch or ())])
    words = [*(overrides or ()), *_placed(overrides or (), nodes, gpus_per_node)]
    config = load_config(ExperimentConfig, experiment, words)
    command = ["train", str(experiment), *words, "--resume-or-start"]
    if slurm:
        _refuse("--slurm finds the machines itself", {"--rendezvous": rendezvous, "--node-rank": node_rank})
        _as_job(config, command, sbatch or (), dry_run)
        return
    _refuse("--sbatch is for --slurm", {"--sbatch": sbatch})
    if config.trainer.nodes > 1:
        machine = _meeting(config.trainer.nodes, rendezvous, node_rank or 0 if dry_run else node_rank)
        _say_batch(config)
        if not dry_run:
            raise typer.Exit(run_ranks(config.trainer.devices, command, machine))
        again = ["fvl", "launch", str(experiment), *words, "--rendezvous", f"{machine.host}:{machine.port}"]
        for number in range(machine.nodes):
            say(shlex.join([*again, "--node-rank", str(number)]))
        return
    _refuse("it is for several machines", {"--rendezvous": rendezvous, "--node-rank": node_rank})
    _say_batch(config)
    if dry_run:
        say(shlex.join(["fvl", *command]))
    else:
        train(experiment, words, resume_or_start=True)


def _as_job(config: ExperimentConfig, command: Sequence[str], options: Sequence[str], dry_run: bool) -> None:
    """Submits the training, or prints its script."""
    job = Job(
        config.name, config.trainer.nodes, config.trainer.devices, config.trainer.accelerator != "cpu",
        [sys.executable, "-m", "fvl_lightning", *command], Path(config.output), options,
    )  # fmt: skip
    if dry_run:
        _say_batch(config)
        terminal().print(job.text(), end="", soft_wrap=True)
    else:
        number = job.submit()
        _say_batch(config)
        say(f"submitted as job {number}: {job.script}, which logs to {job.log}")


def _say_batch(config: ExperimentConfig) -> None:
    say(f"batch: {config.trainer.batch_in_words()}", stderr=True)


def _placed(overrides: Sequence[str], nodes: int | None, gpus_per_node: int | None) -> list[str]:
    """Returns the options as overrides of the experiment; ConfigError if an override contradicts them."""
    placed = []
    for key, option, value in (("nodes", "--nodes", nodes), ("devices", "--gpus-per-node", gpus_per_node)):
        trainers = [parse_override(word).get("trainer") for word in overrides]
        others = [trainer[key] for trainer in trainers if isinstance(trainer, dict) and key in trainer]
        if value is not None and any(other != value for other in others):
            raise ConfigError(f"{option}: it is {value}, but trainer.{key} is {others[-1]}; give one of them")
        if value is not None and not others:
            placed.append(f"trainer.{key}={value}")
    return placed


def _meeting(nodes: int, rendezvous: str | None, node_rank: int | None) -> Machine:
    """This machine and where all of them meet."""
    if rendezvous is None:
        raise ConfigError(
            f"--nodes: {nodes} machines need --slurm, or --rendezvous HOST:PORT, where the first one can be reached"
        )
    place = re.fullmatch(r"([\w.-]+):(\d+)", rendezvous)
    if place is None or not 0 < int(place[2]) < 2**16:
        raise ConfigError(f"--rendezvous: '{rendezvous}' is not HOST:PORT, such as node01:29500")
    if node_rank is None:
        raise ConfigError(
            f"--node-rank: each of the {nodes} machines needs its number, 0 to {nodes - 1}; --dry-run prints them"
        )
    if node_rank >= nodes:
        raise ConfigError(f"--node-rank: {nodes} machines are 0 to {nodes - 1}, not {node_rank}")
    return Machine(node_rank, nodes, place[1], int(place[2]))


def _refuse(why: str, options: dict[str, object]) -> None:
    """ConfigError for the first of these options that was given."""
    for name, value in options.items():
        if value not in (None, []):
            raise ConfigError(f"{name}: {why}, leave it out")
