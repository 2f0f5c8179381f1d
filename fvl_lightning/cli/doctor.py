"""`fvl doctor`: finds on one CPU what would end or waste a training, before a GPU is asked for."""

from pathlib import Path
from typing import Annotated

import typer

from fvl_lightning.comparison.config import is_comparison_file
from fvl_lightning.comparison.plan import check_files
from fvl_lightning.core.errors import EXIT_USAGE_ERROR
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import current_activity, terminal
from fvl_lightning.doctor.configuration import check_configuration
from fvl_lightning.doctor.finding import run_check
from fvl_lightning.doctor.tables import LOG_WIDTH, findings_table, memory_table


def doctor(
    experiment: Annotated[Path, typer.Argument(help="Experiment or comparison file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides, as for fvl train.")] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option("--memory-gb", min=0.1, help="Memory of a device, in 10^9 bytes; by default that of this GPU."),
    ] = None,
) -> None:
    """Check an experiment before it starts, on a CPU: data, labels, batches, memory, disk, tracking, one batch.

    For a comparison file it checks data, arms, earlier results, memory, disk, tracking, and one batch of every stage.

    Data that is made on first use, such as the demo set, is made. The exit code is 2 if a check has failed.

    Example: `fvl doctor experiments/demo/finetune.yaml --memory-gb 80`
    """
    console = terminal()
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    configs: list[ExperimentConfig] = []
    estimate = None
    memory = None if memory_gb is None else int(memory_gb * 1e9)
    if comparison := is_comparison_file(experiment):
        check_files(experiment, overrides or [])
        from fvl_lightning.comparison.checks.examine import examine_comparison

        with current_activity() as report_progress:
            findings = examine_comparison(experiment, overrides or [], report_progress, memory)
    else:
        findings = run_check("configuration", lambda: check_configuration(experiment, overrides or [], configs))
    if configs and not comparison:
        from fvl_lightning.doctor.examine import examine
        from fvl_lightning.evaluation.while_training import open_evaluation

        with current_activity() as report_progress:
            findings, estimate = examine(experiment, overrides or [], memory_gb, report_progress, open_evaluation)
    console.print(findings_table(findings))
    if estimate is not None:
        console.print(memory_table(estimate))
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(EXIT_USAGE_ERROR)
