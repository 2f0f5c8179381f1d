"""Runs a whole comparison: plan, encoders, cells, results, report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import axis_values, experiments, plan_alike
from fvl_lightning.comparison.report.report import rich_table, write_report
from fvl_lightning.comparison.results import collect, loss_curves, sample_answers
from fvl_lightning.comparison.runner import Encoders, Runner
from fvl_lightning.comparison.size_matching import match_sizes
from fvl_lightning.comparison.test_split_log import readings_of
from fvl_lightning.comparison.tracking import log_report, tracked_parent
from fvl_lightning.comparison.tuning import tune, tuning_plans
from fvl_lightning.core.config.files import COMMAND_LINE
from fvl_lightning.core.config.loading import check_config, load_config
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import terminal
from fvl_lightning.evaluation.scoring import score_encoder
from fvl_lightning.launchers.base import Launcher
from fvl_lightning.launchers.local import LocalLauncher
from fvl_lightning.launchers.ray import RayLauncher
from fvl_lightning.launchers.slurm_array import SlurmLauncher
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import prepare_data
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.training.fault_tolerance.signals import preemptible


def show_nothing(result: Table | str) -> None:
    """Shows no result."""


@preemptible()
def run_comparison(
    path: Path,
    overrides: list[str],
    fresh: bool = False,
    retry_failed: bool = False,
    report_only: bool = False,
    show: Callable[[Table | str], None] = show_nothing,
    origin: str = COMMAND_LINE,
) -> Path:
    """Runs the whole comparison and returns the folder of its report.

    Args:
        fresh: trains finished cells again.
        retry_failed: tries failed cells again.
        report_only: trains and scores nothing.
        show: is called with each result: a line of text or a table.
        origin: where the overrides were written, for messages.

    Raises:
        ConfigError: what is to be compared is not well defined, or not fair.
        DataError: cells failed (the report of the others is written), or there is nothing to report.
    """
    config = load_config(ComparisonConfig, path, overrides, origin)
    folder = Path(config.output) / config.name
    plans = experiments(config, path, folder)
    for stages in plans[config.seeds[0]].arms.values():
        data = prepare_data(stages[-1])
        for split in config.unseen_splits:
            data.store(split)
        if config.tune and not data.questions("validation"):
            raise ConfigError(
                f"tune in {path}: the validation split has no questions, and by them learning rates are chosen"
            )
    tuning = tuning_plans(config, path, folder)
    by_seed = [plan.arms for plan in (*plans.values(), *tuning.values())]
    plan_alike(by_seed, config.lineage)
    if config.match != "natural":
        match_sizes(by_seed, config.baseline or next(iter(by_seed[0])), config.match)
    with tracked_parent(config, folder, fresh) as tracker:
        parent = tracker.run_id or None
        runs = Runner(config, launcher_of(config, folder), terminal(), parent, fresh, retry_failed, report_only)
        values = axis_values(arms_of(config, path), plans[config.seeds[0]].arms)
        rates = tune(runs, tuning, plans, values) if tuning else None
        cells, encoders = runs.run(plans, values, "test")
        score_encoders(encoders, show)
        report, answers = collect(config, plans, encoders, cells, parent)
        report |= {"tuning": rates, "test_readings": readings_of(folder, cells)}
        samples = sample_answers(plans[config.seeds[0]].arms, answers)
        write_report(report | {"samples": samples}, loss_curves(cells), folder)
        log_report(tracker, report, folder)
    for table in rich_table(report):
        show(table)
    show(f"report: {folder / 'report.md'}   (follow the runs with `fvl ui`)")
    refuse_missing(cells)
    return folder


def launcher_of(config: ComparisonConfig, folder: Path) -> Launcher:
    """Who runs the cells."""
    if config.launcher == "slurm":
        return SlurmLauncher(folder, config.name, config.jobs, config.slurm)
    if config.launcher == "ray":
        return RayLauncher(config.jobs, config.ray)
    return LocalLauncher(config.jobs)


def score_encoders(encoders: Encoders, show: Callable[[Table | str], None]) -> None:
    """Scores what the shared encoders write about test images, where that is not known yet, and shows it."""
    for run in encoders.values():
        if run is None:
            continue
        data = prepare_data(check_config(ExperimentConfig, run.config))
        known = run.info.get("scored", content := data.content_hash(["test"])) == content
        scores = run.info.get("scores") if known else None
        scores = scores or _scored(run, data, content)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        show(f"encoder {run.path} on the test split: {figures}")


def _scored(run: RunFolder, data: Any, content: str) -> dict[str, float]:
    """What the encoder writes, kept with its run, and with the content of the test split that it wrote about."""
    scores = score_encoder(run)
    run.record(scores=scores, scored=content)
    if run.tracking.is_file():
        results = {"seconds": run.info["seconds"]} | {f"encoder/{name}": value for name, value in scores.items()}
        track_results(run, results, {}, data)
    return scores


def refuse_missing(cells: Sequence[Cell]) -> None:
    """DataError with the last words of the cells that failed, and those that were not run."""
    failed = [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure is not None]
    absent = [cell.name for cell in cells if cell.failure is None and not cell.finished]
    said = [f"{len(failed)} of {len(cells)} cells failed ({'; '.join(failed)})"] if failed else []
    said += [f"not trained yet: {', '.join(absent)}"] if absent else []
    if said:
        retry = "; `--retry-failed` tries again" if failed else ""
        raise DataError(f"the report is incomplete, {' and '.join(said)}{retry}")
