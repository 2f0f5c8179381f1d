"""Plans a comparison and finds what would end it, or make it unfair, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.base import BatchData
from fvl_lightning.comparison.arms import FEATURE_CACHE, written_at
from fvl_lightning.comparison.cell import RESULT
from fvl_lightning.comparison.checks.data import check_data, has_test_questions
from fvl_lightning.comparison.checks.disk import Work, bytes_in, check_disk
from fvl_lightning.comparison.checks.evaluations import check_evaluations, evaluated_stages
from fvl_lightning.comparison.checks.memory import Training, check_memory
from fvl_lightning.comparison.checks.models import build_checked
from fvl_lightning.comparison.checks.output import check_output
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.estimates.features import feature_sets
from fvl_lightning.comparison.matching.sizes import SIZES, match_sizes
from fvl_lightning.comparison.matching.tokens import match_tokens
from fvl_lightning.comparison.plan import SeedPlan, experiments, plan_alike
from fvl_lightning.comparison.result_files.tasks import TaskEvaluation
from fvl_lightning.comparison.scoring.tasks import (
    AskedTasks,
    NamedTask,
    ask_tasks,
    in_words,
    named_tasks,
    resolve_metric,
)
from fvl_lightning.comparison.statistics.complete_cases import too_few
from fvl_lightning.comparison.tuning import trial_name, trials, tuning_plans
from fvl_lightning.core.errors import ConfigError, DataError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.shards import open_existing
from fvl_lightning.launchers.placement import placed
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.store import check_store

Check = Callable[[], str]
"""Returns what it has found to be right, or raises a UserError."""


@dataclass
class PlannedComparison:
    """A comparison that is ready to start: its experiments, planned alike and of matched sizes."""

    config: ComparisonConfig
    path: Path
    plans: dict[int, SeedPlan]
    """{seed: its experiments}."""
    trials: dict[int, SeedPlan]
    """{seed of tune: the arms}; empty where no learning rates are tuned."""
    tasks: dict[str, NamedTask] = field(default_factory=dict)
    """{name: task}; empty where no tasks are scored."""
    asked: AskedTasks | None = None
    """The tasks with the questions that every cell is asked, once they are checked; None without tasks."""
    test_questions: bool = True
    """Whether the split `test` is scored, once the data is checked."""

    @property
    def folder(self) -> Path:
        """Folder of the comparison."""
        return Path(self.config.output) / self.config.name

    @property
    def baseline(self) -> str:
        """The arm that the others are compared to."""
        return self.config.baseline or next(iter(self.plans[self.config.seeds[0]].arms))

    @property
    def evaluation(self) -> TaskEvaluation | None:
        """The tasks and how their scores are tested, once they are checked; None without tasks."""
        if self.asked is None or self.config.evaluate is None:
            return None
        return self.asked.evaluation(self.config.evaluate, self.test_questions)

    @property
    def metric_of_cells(self) -> str:
        """The metric that every cell's MLflow run has, by which it is found."""
        evaluation = self.evaluation
        return self.config.metric if evaluation is None else evaluation.metric_of_cells(self.config.metric)

    @property
    def lack_of_seeds(self) -> str | None:
        """The reason that no difference can be tested, if several seeds are named but too few; None otherwise."""
        seeds = self.config.seeds
        return too_few(len(self.plans[seeds[0]].arms), len(seeds)) if len(seeds) > 1 else None

    @property
    def encoders(self) -> list[ExperimentConfig]:
        """The trainings of shared encoders, one per seed; none where the encoder of the stages is taken."""
        plans = (*self.plans.values(), *self.trials.values())
        return [plan.encoder for plan in plans if plan.encoder is not None]


def plan_comparison(config: ComparisonConfig, path: Path) -> PlannedComparison:
    """Returns the experiments of all seeds and trials, and the tasks; `metric` gets its full name.

    Raises:
        ConfigError: as `experiments`, named_tasks and resolve_metric.
    """
    folder = Path(config.output) / config.name
    tasks = named_tasks(config, path)
    config.metric = resolve_metric(config, path, tasks)
    plans = experiments(config, path, folder)
    return PlannedComparison(config, path, plans, tuning_plans(config, path, folder), tasks)


def check_before_start(planned: PlannedComparison, fresh: bool = False, report_only: bool = False) -> None:
    """Checks tracking store, data, arms, output folder, memory and disk; makes the arms train alike, sizes matched.

    Args:
        planned: changed in place.
        fresh: whether finished cells are trained again.
        report_only: whether nothing will be trained.

    Raises:
        ConfigError, DataError: all problems that were found, in one sentence; that of the tracking store by itself,
            since it is found before any data is made.
    """
    tracking = planned.plans[planned.config.seeds[0]].arms[planned.baseline][-1].tracking
    if tracking.enabled:
        check_store(tracking.uri)
    for checks in steps_of_checks(planned, fresh, report_only):
        errors: list[UserError] = []
        for check in checks.values():
            try:
                check()
            except UserError as error:
                errors.append(error)
        if errors:
            kind = ConfigError if any(isinstance(error, ConfigError) for error in errors) else DataError
            raise kind("; ".join(map(str, errors)))


def steps_of_checks(
    planned: PlannedComparison, fresh: bool, report_only: bool, memory: int | None = None
) -> list[Mapping[str, Check]]:
    """Returns {name: check} in two steps; those of the second need that all of the first have passed.

    Args:
        planned: changed in place, as by check_before_start.
        fresh: see check_before_start.
        report_only: see check_before_start.
        memory: bytes of the devices that will train; None for those of this machine.
    """
    built: dict[str, list[Stage]] = {}
    config = planned.config
    by_seed = [plan.arms for plan in (*planned.plans.values(), *planned.trials.values())]

    def arms() -> str:
        for encoder in planned.encoders[:1]:
            built[""] = [build_checked(encoder)]
        match_tokens(by_seed, planned.baseline, config)
        built.update(plan_alike(by_seed, config.lineage))
        return f"{', '.join(by_seed[0])} can be built; fusions and projectors return the shapes that they declare"

    def sizes() -> str:
        match_sizes(by_seed, planned.baseline, config.match)
        return f"match: {config.match} was solved for every arm"

    def disk() -> str:
        features = missing_feature_bytes(planned, built, open_existing)
        return check_disk(planned.folder, unfinished_work(planned, built, fresh), config.jobs, features)

    def data() -> str:
        planned.test_questions = has_test_questions(config, planned.plans)
        return check_data(config, planned.plans, planned.test_questions)

    def tasks() -> str:
        assert config.evaluate is not None
        where = written_at(config, "evaluate.limit", planned.path)
        planned.asked = ask_tasks(planned.tasks, config.evaluate.limit, where)
        return in_words(planned.tasks, planned.asked)

    first: dict[str, Check] = {"data": data, "arms": arms} | ({"tasks": tasks} if planned.tasks else {})
    if (evaluated := evaluated_stages(by_seed[0])) and not report_only:
        judged = [task.config for task in planned.tasks.values()]
        first["evaluation"] = lambda: check_evaluations(evaluated, judged)
    second: dict[str, Check] = {"sizes": sizes} if config.match in SIZES else {}
    if not fresh:
        second["output"] = lambda: check_output(config, planned.folder, planned.plans)
    if not report_only:
        second["memory"] = lambda: check_memory(config, trainings(planned, built), open_existing, memory)
        second["disk"] = disk
    return [first, second]


def trainings(planned: PlannedComparison, built: Mapping[str, Sequence[Stage]]) -> list[Training]:
    """Returns the stages of every arm of the first seed on the devices of a cell, and that of the shared encoder.

    Args:
        planned: the comparison.
        built: see unfinished_work.
    """
    resources = planned.config.resources
    arms = planned.plans[planned.config.seeds[0]].arms
    encoders = [Training("the encoder", encoder, built[""][0]) for encoder in planned.encoders[:1]]
    return encoders + [
        Training(f"arm {arm}", placed(experiment, resources), stage)
        for arm, experiments_of_arm in arms.items()
        for experiment, stage in zip(experiments_of_arm, built[arm], strict=True)
    ]


def missing_feature_bytes(
    planned: PlannedComparison,
    built: Mapping[str, list[Stage]],
    data_of: Callable[[ExperimentConfig], BatchData | None],
) -> int:
    """Returns the bytes of the features that are not cached yet.

    Args:
        planned: the comparison.
        built: see unfinished_work.
        data_of: returns the data of an experiment; None where it is not there, and its features are left out.
    """
    sets = feature_sets([*planned.plans.values(), *planned.trials.values()], built, data_of)
    needed = sum(one.bytes or 0 for one in sets)
    return max(0, needed - bytes_in(planned.folder / FEATURE_CACHE)) if needed else 0


def unfinished_work(planned: PlannedComparison, built: Mapping[str, list[Stage]], fresh: bool = False) -> Work:
    """Returns the cells, trials and encoders that are not finished.

    Args:
        planned: the comparison.
        built: {arm: its stages on the meta device}; under "" the stage of the shared encoder.
        fresh: whether finished ones count too.
    """
    factors = planned.config.tune.learning_rate_factors if planned.config.tune else []
    stages = dict(built) | {trial_name(arm, factor): built[arm] for arm in built for factor in factors}
    cells = [
        (folder, label)
        for plan in (*planned.plans.values(), *trials(planned.trials, factors).values())
        for label, folder in plan.folders.items()
        if fresh or not (folder / RESULT).is_file()
    ]
    encoders = [
        (Path(encoder.output) / encoder.name, "")
        for encoder in planned.encoders
        if fresh or not any(run.finished for run in RunFolder.named(Path(encoder.output), encoder.name))
    ]
    return [(0 if fresh else bytes_in(folder), stages[label]) for folder, label in (*encoders, *cells)]
