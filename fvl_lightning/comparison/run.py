"""Runs a whole comparison: plan, encoders, cells, results, report."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from datamodules.base import BatchData
from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.cell import WITHOUT_GPUS, Cell
from fvl_lightning.comparison.checks.before_start import PlannedComparison, check_before_start, plan_comparison
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan, axis_values
from fvl_lightning.comparison.report.report import rich_tables, write_report
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.results import collect, loss_curves, sample_answers, source_weights
from fvl_lightning.comparison.runner import Encoders, Runner
from fvl_lightning.comparison.split_readings import read_test_access
from fvl_lightning.comparison.tracking import link_pages, log_report, tracked_parent
from fvl_lightning.comparison.tuning import tune
from fvl_lightning.core.config.base_files import COMMAND_LINE
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import terminal
from fvl_lightning.evaluation.scoring import score_encoder
from fvl_lightning.launchers.base import Launcher
from fvl_lightning.launchers.gpus import GpuPool, visible_gpus
from fvl_lightning.launchers.local import LocalLauncher
from fvl_lightning.launchers.ray import RayLauncher
from fvl_lightning.launchers.slurm_array import SlurmLauncher, check_array_options
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import prepare_data
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.training.fault_tolerance.signals import preemptible

logger = logging.getLogger(__name__)

Show = Callable[[Table | str], None]
"""Called with each result: a line of text or a table."""


def show_nothing(result: Table | str) -> None:
    """Shows no result."""


@preemptible()
def run_comparison(
    path: Path,
    overrides: list[str],
    fresh: bool = False,
    retry_failed: bool = False,
    report_only: bool = False,
    show: Show = show_nothing,
    origin: str = COMMAND_LINE,
) -> Path:
    """Runs a whole comparison and writes its report.

    Args:
        path: the comparison file.
        overrides: `key=value` for it.
        fresh: whether to train again what was trained before.
        retry_failed: whether to run cells again that failed.
        report_only: whether to train nothing and report what is finished.
        show: see Show.
        origin: where the overrides were written, for messages.

    Returns:
        The folder of the report.

    Raises:
        ConfigError: the arms are not well defined, or the comparison would not be fair.
        DataError: what a comparison needs is missing (checks/before_start.py), cells failed (the report of the others
            is written), or there is nothing to report.
    """
    config = load_config(ComparisonConfig, path, overrides, origin)
    planned = plan_comparison(config, path)
    check_before_start(planned, fresh, report_only)
    folder, plans = planned.folder, planned.plans
    tracking = plans[config.seeds[0]].arms[planned.baseline][-1].tracking
    if not report_only:
        check_launcher(config, plans[config.seeds[0]])
        warn_of_few_seeds(planned)
    with tracked_parent(config, tracking, folder, fresh) as tracker:
        pages = link_pages(tracker, tracking.uri, planned.metric_of_cells)
        runner = Runner(config, launcher_of(config, folder), terminal(), tracker, fresh, retry_failed, report_only)
        runner.score_on(planned.asked.specs if planned.asked else {}, planned.test_questions)
        arms = plans[config.seeds[0]].arms
        values = axis_values(arms_of(config, path), arms)
        tuning = tune(runner, planned.trials, plans, values)
        cells, encoders = runner.run(plans, values, "test")
        score_encoders(encoders, show)
        comparison, answers = collect(config, plans, encoders, cells, tracker.run_id or None, planned.evaluation)
        comparison.mlflow.pages, comparison.tuning = pages, tuning
        comparison.test_readings = read_test_access(folder, cells)
        limits = prepare_data(arms[planned.baseline][-1]).limits()
        sheet = sample_answers(arms, answers) if comparison.tested else []
        write_report(comparison, sheet, loss_curves(cells), folder, limits, source_weights(cells))
        log_report(tracker, comparison, folder, missing_cells(cells))
        show_results(comparison, folder, show)
        refuse_missing(cells)
    return folder


def warn_of_few_seeds(planned: PlannedComparison) -> None:
    """Logs why no difference will be tested, if several seeds are named but too few."""
    if planned.lack_of_seeds is not None:
        logger.warning("no difference will be tested: %s", planned.lack_of_seeds)


def show_results(comparison: Comparison, folder: Path, show: Show) -> None:
    """Shows the report's tables, and where the report is."""
    for table in rich_tables(comparison):
        show(table)
    in_mlflow = f"   (in MLflow: `fvl ui {folder}`)" if comparison.mlflow.run_id else ""
    show(f"report: {folder / 'report.md'}{in_mlflow}")


def launcher_of(config: ComparisonConfig, folder: Path) -> Launcher:
    """Returns the launcher that the comparison names."""
    if config.launcher == "slurm":
        return SlurmLauncher(folder, config.name, config.jobs, config.slurm)
    if config.launcher == "ray":
        return RayLauncher(config.jobs, config.ray)
    return LocalLauncher(config.jobs)


def check_launcher(config: ComparisonConfig, plan: SeedPlan) -> None:
    """Raises ConfigError where the launcher cannot give every cell its devices, before anything is trained."""
    accelerators = {stage.trainer.accelerator for stages in plan.arms.values() for stage in stages}
    if config.launcher == "local" and accelerators - {*WITHOUT_GPUS}:
        GpuPool(visible_gpus()).check(config.resources, gpus=True)
    if config.launcher == "slurm":
        check_array_options(config.slurm, config.resources)


def score_encoders(encoders: Encoders, show: Show) -> None:
    """Scores what the shared encoders write about test images, unless these scores are known, and shows the scores."""
    for run in encoders.values():
        if run is None:
            continue
        data = prepare_data(run.experiment())
        known = run.info.get("scored", content := data.content_hash(["test"])) == content
        scores = run.info.get("scores") if known else None
        scores = scores or _score_encoder(run, data, content)
        texts = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        show(f"encoder {run.path} on the test split: {texts}")


def _score_encoder(run: RunFolder, data: BatchData, content: str) -> dict[str, float]:
    """Scores an encoder, and records the scores in its run with the content hash of the test split."""
    scores = score_encoder(run)
    run.record(scores=scores, scored=content)
    if run.tracking.is_file():
        results = {"seconds": run.info["seconds"]} | {f"encoder/{name}": value for name, value in scores.items()}
        track_results(run, results, {}, data)
    return scores


def refuse_missing(cells: Sequence[Cell]) -> None:
    """Raises DataError where cells failed or were not run."""
    if missing := missing_cells(cells):
        retry = "; `--retry-failed` tries again" if any(cell.failure is not None for cell in cells) else ""
        raise DataError(f"the report is incomplete, {' and '.join(missing)}{retry}")


def missing_cells(cells: Sequence[Cell]) -> list[str]:
    """Returns which cells failed, with the last log line of each, and which were not run; empty where all finished."""
    failed = [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure is not None]
    absent = [cell.name for cell in cells if cell.failure is None and not cell.finished]
    missing = [f"{len(failed)} of {len(cells)} cells failed ({'; '.join(failed)})"] if failed else []
    return missing + ([f"not trained yet: {', '.join(absent)}"] if absent else [])
