"""Runs the cells of a comparison: trains shared encoders, caches their features, then runs every cell."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TimeRemainingColumn

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.comparison.progress import show_progress
from fvl_lightning.comparison.result_files.cell import CellInputs, CellSpec
from fvl_lightning.comparison.result_files.tasks import TaskSpec
from fvl_lightning.comparison.scoring.names import score_of_split
from fvl_lightning.comparison.split_readings import report_to_replace
from fvl_lightning.comparison.tracking import mark_current
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.device import release_memory
from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import progress
from fvl_lightning.evaluation.metrics.lookup import split_score
from fvl_lightning.evaluation.while_training import open_evaluation
from fvl_lightning.launchers.base import POLL_SECONDS, Launcher
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import input_hashes
from fvl_lightning.runs.resume import identity_of
from fvl_lightning.runs.run import reuse_or_train, run_training
from fvl_lightning.runs.setup import (
    TRAINING_SPLITS,
    build_stage,
    cached_features,
    data_context,
    prepare_data,
    start_from,
)
from fvl_lightning.tracking.links import CURRENT_TAG
from fvl_lightning.tracking.tracker import Tracker
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.fault_tolerance.signals import Preempted, StopSignals
from fvl_lightning.training.load_weights import load_components

logger = logging.getLogger(__name__)

Encoders = dict[int, RunFolder | None]
"""{seed: the encoder run that its arms share}; None where the stages' own encoder is taken."""


@dataclass
class Runner:
    """Runs the cells of a comparison."""

    config: ComparisonConfig
    launcher: Launcher
    console: Console
    tracker: Tracker
    """MLflow run of the comparison, the parent of all others."""
    fresh: bool
    """Whether to train again what was trained before."""
    retry_failed: bool
    """Whether to run cells again that failed."""
    report_only: bool
    """Whether to train nothing, and leave unfinished cells as they are."""
    tasks: Mapping[str, TaskSpec] = field(default_factory=dict)
    """The tasks that the cells are scored on."""
    test_questions: bool = True
    """Whether the cells are scored on the split `test`."""
    _contents: dict[str, str] = field(default_factory=dict)

    def score_on(self, tasks: Mapping[str, TaskSpec], test_questions: bool) -> None:
        """Has the cells scored on tasks, and on the split `test` if `test_questions`."""
        self.tasks, self.test_questions = tasks, test_questions

    def run(
        self, plans: Mapping[int, SeedPlan], values: Mapping[str, Mapping[str, str]], split: str
    ) -> tuple[list[Cell], Encoders]:
        """Runs every arm with every seed.

        Args:
            plans: {seed: its experiments}.
            values: {arm: values that it sets}, for tags.
            split: the split to score on.

        Returns:
            The cells, and the encoders that they share.

        Raises:
            DataError: an encoder that `report_only` needs is not trained.
        """
        encoders = {seed: self._encoder(seed, plan, split) for seed, plan in plans.items()}
        cells = [
            Cell(arm, seed, folder, self._specification(plan, arm, values[arm], encoders[seed], split))
            for seed, plan in plans.items()
            for arm, folder in plan.folders.items()
        ]
        mark_current(self.tracker, cells, encoders)
        if split == "test":
            self._announce_new_report(cells)
        if not self.report_only:
            for seed, plan in plans.items():
                if self.fresh or not all(cell.finished for cell in cells if cell.seed == seed):
                    warm_feature_cache(encoders[seed], plan, self.console)
            try:
                run_cells(cells, self.launcher, self.console, self.fresh, self.retry_failed)
            finally:
                mark_current(self.tracker, cells, encoders)
        return cells, encoders

    def _announce_new_report(self, cells: Sequence[Cell]) -> None:
        """Prints that an earlier report of other cells will be replaced."""
        folder = Path(self.config.output) / self.config.name
        if (report := report_to_replace(folder, cells)) is not None:
            when = report.time.replace("T", " ").removesuffix("+00:00")
            line = f"{folder / 'report.md'} of {when} (UTC) will be replaced; changed since: "
            self.console.print(line + ", ".join(report.changed), soft_wrap=True, markup=False)

    def _encoder(self, seed: int, plan: SeedPlan, split: str) -> RunFolder | None:
        """Returns the encoder that all arms of the seed share, and trains it if needed."""
        if plan.encoder is None:
            return None
        if self.report_only:
            wanted = identity_of(plan.encoder, prepare_data(plan.encoder))
            run = RunFolder.reusable(Path(plan.encoder.output), plan.encoder.name, wanted)
            if run is None or not run.finished:
                raise DataError(f"--report: {plan.encoder.output} has no finished {plan.encoder.name} of seed {seed}")
            return run
        train = run_training if self.fresh else reuse_or_train
        run = train(
            plan.encoder,
            parent_run_id=self.tracker.run_id or None,
            tags=self._tags(split),
            open_evaluation=open_evaluation,
        )
        StopSignals.late.raise_for()
        return run

    def _tags(self, split: str) -> dict[str, str]:
        """Returns the tags that all MLflow runs of the comparison have."""
        name = self.config.name if split == "test" else f"{self.config.name}, {split}"
        return {"fvl.comparison": name, "fvl.lineage": self.config.lineage, CURRENT_TAG: "true"}

    def _specification(
        self, plan: SeedPlan, arm: str, values: Mapping[str, str], encoder_run: RunFolder | None, split: str
    ) -> CellSpec:
        config, stages, tested = self.config, plan.arms[arm], split == "test"
        chosen_by = None if tested or config.tune is None else config.tune.metric
        tags = {**self._tags(split), "fvl.arm": arm}
        return CellSpec(
            stages=[as_plain(stage) for stage in stages],
            encoder_run=None if encoder_run is None else str(encoder_run.path),
            encoder_hash=None if encoder_run is None else encoder_run.info["encoder_hash"],
            unseen_splits=config.unseen_splits if tested else [],
            transfer_levels=config.transfer_levels if tested else [],
            parent_run_id=self.tracker.run_id or None,
            tags=tags | {f"fvl.axis.{key}": value for key, value in values.items()},
            fresh=self.fresh,
            split=split,
            made_of=CellInputs([input_hashes(stage) for stage in stages], self._contents_of(stages, split)),
            metric=split_score(chosen_by or score_of_split(config.metric))[0],
            resources=config.resources,
            precision=config.scoring.precision,
            tasks=dict(self.tasks) if tested else {},
            macro=config.evaluate.macro if config.evaluate and tested else {},
            test_questions=self.test_questions or not tested,
        )

    def _contents_of(self, stages: Sequence[ExperimentConfig], split: str) -> list[str]:
        """Returns for every stage the hash of the data that it trains on; for the last one also of what is scored."""
        tested = split == "test"
        scored = [split] if self.test_questions or not tested else []
        scored += self.config.unseen_splits if tested else []
        splits = [TRAINING_SPLITS] * (len(stages) - 1) + [[*TRAINING_SPLITS, *scored]]
        return [self._content(stage, tuple(dict.fromkeys(names))) for stage, names in zip(stages, splits, strict=True)]

    def _content(self, stage: ExperimentConfig, splits: tuple[str, ...]) -> str:
        """Returns the hash of a stage's data, which many stages share."""
        key = config_hash([stage.data, splits])
        if key not in self._contents:
            self._contents[key] = prepare_data(stage).content_hash(splits)
        return self._contents[key]


def warm_feature_cache(encoder_run: RunFolder | None, plan: SeedPlan, console: Console) -> None:
    """Computes the frozen encoder's features before the arms start, once for every set of sources among them."""
    seen: set[str] = set()
    with progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console) as bar:
        for stages in plan.arms.values():
            experiment = stages[0]
            wanted = config_hash([experiment.encoder, experiment.data, experiment.feature_cache_dtype])
            if experiment.feature_cache is None or wanted in seen:
                continue
            seen.add(wanted)
            data = prepare_data(experiment)
            stage = build_stage(experiment)
            if encoder_run is not None:
                load_components(stage.model, encoder_run.model)
            else:
                start_from(stage, experiment)
            stage.train()
            data.connect(data_context(stage.model, stage.tokenizer, experiment))
            task = bar.add_task("features of the frozen encoder", total=None)

            def show(split: str, done: int, total: int, task: TaskID = task) -> None:
                bar.update(task, description=f"features of {split}", completed=done, total=total)

            cached_features(stage, data, experiment, Ranks(), show)
            bar.remove_task(task)
            del stage
            release_memory()


def run_cells(cells: Sequence[Cell], launcher: Launcher, console: Console, fresh: bool, retry_failed: bool) -> None:
    """Runs the cells that are not finished, and records why cells fail.

    Progress is shown as a live table, or as log lines where there is no terminal. A cell that another process runs is
    waited for, and run again only if it has no result then.

    Args:
        cells: all cells of the comparison.
        launcher: starts their processes.
        console: for the table.
        fresh: whether to run finished cells again.
        retry_failed: whether to run cells again that failed.
    """
    wanted = [cell for cell in cells if fresh or not cell.finished]
    todo = [cell for cell in wanted if fresh or retry_failed or cell.failure is None]
    while todo:
        elsewhere = [cell for cell in todo if cell.held]
        own = [cell for cell in todo if cell not in elsewhere]
        if own:
            _launch(cells, own, launcher, console)
        # Another start of the comparison may have begun one of them at the same moment.
        elsewhere += [cell for cell in own if cell.code == EXIT_REQUEUE and cell.held]
        for cell in elsewhere:
            _wait_for(cell)
        left = [cell for cell in elsewhere if fresh or not cell.finished]
        todo = [cell for cell in left if fresh or retry_failed or cell.failure is None]


def _launch(cells: Sequence[Cell], own: Sequence[Cell], launcher: Launcher, console: Console) -> None:
    """Runs the cells of `own`, and records why cells fail; one that was stopped with this process has not failed."""
    stopped = False
    try:
        with show_progress(cells, own, console) as update:
            launcher.run(own, update)
    except (KeyboardInterrupt, Preempted):
        stopped = True
        raise
    finally:
        for cell in own:
            ended_by_signal = cell.code is not None and cell.code < 0
            if cell.code not in (None, 0, EXIT_INTERRUPTED, EXIT_REQUEUE) and not (stopped and ended_by_signal):
                cell.record_failure()


def _wait_for(cell: Cell) -> None:
    """Waits for the end of the process that runs a cell; the lock ends with it."""
    if cell.held:
        logger.info("%s is being run by another process; waiting for its end", cell.name)
    while cell.held:
        time.sleep(POLL_SECONDS)
