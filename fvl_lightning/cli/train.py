"""`fvl train`: one experiment file, one run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import own_rank, say, started_ranks
from fvl_lightning.launchers.ranks import run_ranks


def train(
    experiment: Annotated[Path, typer.Argument(help="Experiment file, such as experiments/demo/finetune.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides, such as fusion=gated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the newest run of this name.")] = False,
    resume_or_start: Annotated[
        bool, typer.Option("--resume-or-start", help="Resume the newest run of this name; start one if there is none.")
    ] = False,
) -> None:
    """Train one stage: read an experiment file, train, and save the model in a run folder.

    Example: `fvl train experiments/demo/finetune.yaml fusion=gated trainer.max_steps=20`
    """
    if resume and resume_or_start:
        raise ConfigError("--resume, --resume-or-start: they differ where there is no run to resume; give one of them")
    config = load_config(ExperimentConfig, experiment, overrides or ())
    from fvl_lightning.evaluation.while_training import open_evaluation
    from fvl_lightning.runs.resume import stopped_run
    from fvl_lightning.runs.run import reuse_or_train, run_training
    from fvl_lightning.training.trainer import check_machine

    check_machine(config.trainer)
    if config.trainer.devices > 1 and config.trainer.nodes == 1 and started_ranks() == 1:
        options = {"--resume": resume, "--resume-or-start": resume_or_start}
        words = ["train", str(experiment), *(overrides or ()), *(word for word, given in options.items() if given)]
        sys.exit(run_ranks(config.trainer.devices, words))
    if resume_or_start:
        run = reuse_or_train(config, open_evaluation=open_evaluation)
    else:
        run = run_training(config, stopped_run(config) if resume else None, open_evaluation=open_evaluation)
    if own_rank() > 0:
        return
    for name in ("train/loss", "validation/loss", "validation/token_accuracy"):
        if curve := run.curve(name):
            say(f"{name} {curve[-1][1]:.4f} at step {curve[-1][0]}")
    say(f"finished: {run.path}   (model in {run.model})")
