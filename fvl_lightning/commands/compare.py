"""`fvl compare`: arms that differ only in the swept keys, trained with every seed, under one MLflow parent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress

from fvl_lightning.commands.arms import SeedPlan, experiments, plan_alike
from fvl_lightning.commands.cells import Cell, cells_table
from fvl_lightning.commands.collect import collect, loss_curves, sample_answers
from fvl_lightning.commands.console import INTERRUPTED, REQUEUE
from fvl_lightning.commands.evaluate import score_encoder
from fvl_lightning.commands.launchers import Launcher, LocalLauncher
from fvl_lightning.commands.matching import match_sizes
from fvl_lightning.commands.parent_run import log_report, tracked_parent
from fvl_lightning.commands.ray_tasks import RayLauncher
from fvl_lightning.commands.slurm import SlurmLauncher
from fvl_lightning.commands.train import (
    TRAINING_SPLITS,
    build_stage,
    data_context,
    prepare_data,
    reuse_or_train,
    run_training,
)
from fvl_lightning.core.comparison import ComparisonConfig, arms_of
from fvl_lightning.core.config import as_plain, config_hash, load_config
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.report import rich_table, write_report
from fvl_lightning.training.feature_cache import build_feature_cache
from fvl_lightning.training.run_folder import RunFolder
from fvl_lightning.training.stop import preemptible
from fvl_lightning.training.weights import load_components

Encoders = dict[int, RunFolder | None]
"""The encoder that the arms of a seed share; None where the stages' own is taken."""


def compare(
    comparison: Annotated[Path, typer.Argument(help="Comparison file, such as experiments/demo/comparison.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words of the comparison.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is finished already.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cells again.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the report again; train and score nothing.")] = False,
) -> None:
    """Train and score every arm with every seed, and write the report.

    Finished cells of the same configuration are kept, unfinished ones resumed; failed ones are left until asked for.

    Example: `fvl compare experiments/demo/comparison.yaml jobs=2`
    """
    run_comparison(comparison, overrides or [], fresh, retry_failed, report)


@preemptible()
def run_comparison(
    path: Path, overrides: list[str], fresh: bool = False, retry_failed: bool = False, report_only: bool = False
) -> Path:
    """The whole comparison; returns the folder of its report.

    Raises:
        ConfigError: what is to be compared is not well defined, or not fair.
        DataError: cells failed (the report of the others is written), or there is nothing to report.
    """
    config = load_config(ComparisonConfig, path, overrides)
    folder = Path(config.output) / config.name
    plans = experiments(config, path, folder)
    for stages in plans[config.seeds[0]].arms.values():
        data = prepare_data(stages[-1])
        for split in config.unseen_splits:
            data.store(split)
    by_seed = [plan.arms for plan in plans.values()]
    plan_alike(by_seed, config.lineage)
    if config.match != "natural":
        match_sizes(by_seed, config.baseline or next(iter(by_seed[0])), config.match)
    console = Console()
    with tracked_parent(config, folder, fresh) as tracker:
        parent = tracker.run_id or None
        encoders = trained_encoders(plans, parent, fresh, report_only, console)
        values = {name: arm.values for name, arm in arms_of(config, path).items()}
        cells = []
        for seed, plan in plans.items():
            for arm, folder_of_arm in plan.folders.items():
                told = specification(config, plan, arm, values[arm], encoders[seed], parent, fresh)
                cells.append(Cell(arm, seed, folder_of_arm, told))
        if not report_only:
            for seed, plan in plans.items():
                if fresh or not all(cell.finished for cell in cells if cell.seed == seed):
                    warm_feature_cache(encoders[seed], plan, console)
            run_cells(cells, launcher_of(config, folder), console, fresh, retry_failed)
        report, answers = collect(config, plans, encoders, cells, parent)
        samples = sample_answers(plans[config.seeds[0]].arms, answers)
        write_report(report | {"samples": samples}, loss_curves(cells), folder)
        log_report(tracker, report, folder)
    for table in rich_table(report):
        console.print(table)
    console.print(f"report: {folder / 'report.md'}   (follow the runs with `fvl ui`)", highlight=False, soft_wrap=True)
    refuse_missing(cells)
    return folder


def launcher_of(config: ComparisonConfig, folder: Path) -> Launcher:
    """Who runs the cells."""
    if config.launcher == "slurm":
        return SlurmLauncher(folder, config.name, config.jobs, config.slurm)
    if config.launcher == "ray":
        return RayLauncher(config.jobs, config.ray)
    return LocalLauncher(config.jobs)


def trained_encoders(
    plans: dict[int, SeedPlan], parent: str | None, fresh: bool, report_only: bool, console: Console
) -> Encoders:
    """The encoder of every seed, trained and scored where it is not yet."""
    encoders: Encoders = dict.fromkeys(plans)
    for seed, plan in plans.items():
        if plan.encoder is None:
            continue
        if report_only:
            plain = as_plain(plan.encoder)
            run = RunFolder.reusable(Path(plan.encoder.output), plan.encoder.name, config_hash(plain))
            if run is None or not run.finished:
                raise DataError(f"--report: {plan.encoder.output} has no finished {plan.encoder.name} of seed {seed}")
        elif fresh:
            run = run_training(plan.encoder, parent_run_id=parent)
        else:
            run = reuse_or_train(plan.encoder, parent_run_id=parent)
        scores = run.info.get("scores") or score_encoder(run)
        run.record(scores=scores)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        console.print(f"encoder {run.path} on the test split: {figures}", highlight=False, soft_wrap=True)
        encoders[seed] = run
    return encoders


def warm_feature_cache(encoder_run: RunFolder | None, plan: SeedPlan, console: Console) -> None:
    """Computes the frozen encoder's features once, before the arms start, for every set of sources among them."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for stages in plan.arms.values():
            experiment = stages[0]
            if experiment.feature_cache is None:
                continue
            data = prepare_data(experiment)
            stage = build_stage(experiment)
            if encoder_run is not None:
                load_components(stage.model, encoder_run.model)
            stage.train()
            data.connect(data_context(stage.model, stage.tokenizer, experiment))
            task = progress.add_task("features of the frozen encoder", total=None)

            def show(split: str, done: int, total: int, task: Any = task) -> None:
                progress.update(task, description=f"features of {split}", completed=done, total=total)

            build_feature_cache(stage.model.encoder, data, TRAINING_SPLITS, Path(experiment.feature_cache), show)
            progress.remove_task(task)


def specification(
    config: ComparisonConfig,
    plan: SeedPlan,
    arm: str,
    values: Mapping[str, Any],
    encoder_run: RunFolder | None,
    parent: str | None,
    fresh: bool,
) -> dict[str, Any]:
    """What the process of a cell is told; see commands/cell.py."""
    tags = {"fvl.comparison": config.name, "fvl.lineage": config.lineage, "fvl.arm": arm}
    return {
        "stages": [as_plain(stage) for stage in plan.arms[arm]],
        "encoder_run": None if encoder_run is None else str(encoder_run.path),
        "encoder_hash": None if encoder_run is None else encoder_run.info["encoder_hash"],
        "unseen_splits": config.unseen_splits,
        "transfer_levels": config.transfer_levels,
        "parent_run_id": parent,
        "tags": tags | {f"fvl.axis.{key}": str(value) for key, value in values.items()},
        "fresh": fresh,
    }


def run_cells(cells: Sequence[Cell], launcher: Launcher, console: Console, fresh: bool, retry_failed: bool) -> None:
    """Runs what is not finished, with a live table on a terminal; keeps why a cell failed."""
    wanted = [cell for cell in cells if fresh or not cell.finished]
    todo = [cell for cell in wanted if fresh or retry_failed or cell.failure is None]
    if not todo:
        return
    try:
        if console.is_terminal:
            with Live(cells_table(cells), console=console, refresh_per_second=2, transient=True) as live:
                launcher.run(todo, lambda: live.update(cells_table(cells)))
        else:
            launcher.run(todo, lambda: None)
    finally:
        for cell in todo:
            if cell.code not in (None, 0, INTERRUPTED, REQUEUE):
                cell.record_failure()


def refuse_missing(cells: Sequence[Cell]) -> None:
    """DataError with the last words of the cells that failed, and those that were not run."""
    failed = [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure is not None]
    absent = [cell.name for cell in cells if cell.failure is None and not cell.finished]
    said = [f"{len(failed)} of {len(cells)} cells failed ({'; '.join(failed)})"] if failed else []
    said += [f"not trained yet: {', '.join(absent)}"] if absent else []
    if said:
        retry = "; `--retry-failed` tries again" if failed else ""
        raise DataError(f"the report is incomplete, {' and '.join(said)}{retry}")
