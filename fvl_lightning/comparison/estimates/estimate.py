"""Plans the costs of a comparison: what it trains, scores and takes, without training and without the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fvl_lightning.comparison.cell import RESULT
from fvl_lightning.comparison.checks.before_start import PlannedComparison, plan_comparison, trainings
from fvl_lightning.comparison.checks.data import has_test_questions
from fvl_lightning.comparison.checks.output import check_output
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.estimates.build import OfflineBuilder
from fvl_lightning.comparison.estimates.costs import (
    ScoringCost,
    StageCost,
    count_questions,
    counted,
    scoring_cost,
    stage_cost,
)
from fvl_lightning.comparison.estimates.features import FeatureSet, feature_sets
from fvl_lightning.comparison.estimates.hours import Clock
from fvl_lightning.comparison.estimates.measured_steps import MeasuredSteps
from fvl_lightning.comparison.estimates.rows import DataCache, rows_of, split_counts
from fvl_lightning.comparison.matching.sizes import SIZES, match_sizes
from fvl_lightning.comparison.matching.tokens import match_tokens
from fvl_lightning.comparison.plan import plan_alike
from fvl_lightning.comparison.scoring.tasks import ask_tasks
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.devices import Device, device_here, named_device
from fvl_lightning.profiling.flops import encoder_flops
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage

ENCODER = "(encoder)"
"""The arm under which the training of the shared encoder is listed."""


@dataclass(frozen=True)
class PlanOptions:
    """Options of `fvl compare --plan`."""

    device: str | None = None
    """Name of a GPU to plan for; None for this machine's device."""
    device_tflops: float | None = None
    """10^12 operations a second that a device sustains; None for a share of its published peak."""
    row_tokens: int | None = None
    """Tokens of a row, where no rows can be inspected."""
    measure: bool = False
    """Whether to measure steps on this machine's device."""


@dataclass
class Estimates:
    """Costs of all parts of a comparison."""

    planned: PlannedComparison
    device: Device
    clock: Clock
    builder: OfflineBuilder
    built: dict[str, list[Stage]]
    costs: dict[tuple[str, str], StageCost] = field(default_factory=dict)
    """{(arm, stage): costs}."""
    scoring: dict[str, ScoringCost] = field(default_factory=dict)
    """{arm: costs of scoring a cell}."""
    features: list[tuple[FeatureSet, int]] = field(default_factory=list)
    """(cached features, operations of the encoder for an image)."""
    tasks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """{task: (questions that are asked, tokens of an answer)}."""
    notes: list[str] = field(default_factory=list)
    data: DataCache = field(default_factory=DataCache)

    def finished_cells(self, arm: str) -> list[Path]:
        """Returns the folders of the finished cells of an arm."""
        folders = [plan.folders[arm] for plan in self.planned.plans.values() if arm in plan.folders]
        return [folder for folder in folders if (folder / RESULT).is_file()]


def estimate_comparison(
    path: Path, overrides: Sequence[str], options: PlanOptions, report_progress: Callable[[str], None]
) -> Estimates:
    """Estimates the costs of every stage of a comparison.

    Data is inspected where its shards exist, and nothing is made but the tokenizer of a set that brings its own.

    Args:
        path: the comparison file.
        overrides: `key=value` for it.
        options: see PlanOptions.
        report_progress: called with what is estimated next.

    Raises:
        ConfigError: the comparison is not valid, or an arm cannot be built because its sizes are not known.
    """
    planned, builder, built = _built(path, overrides, report_progress)
    config, notes = planned.config, builder.notes
    device = _device(options, planned)
    sustained = None if options.device_tflops is None else options.device_tflops * 1e12
    measured = MeasuredSteps(planned.folder, device)
    estimates = Estimates(planned, device, Clock(device, sustained, measured), builder, built, notes=notes)
    for training in trainings(planned, built):
        arm, experiment, stage = training
        name = ENCODER if stage is built.get("", [None])[0] else arm.removeprefix("arm ")
        report_progress(f"{name}, {experiment.name}")
        data = estimates.data.of(experiment)
        rows = rows_of(stage, data if builder.reads_tokenizer(stage) else None, options.row_tokens)
        if data is not None:
            data.connect(data_context(stage.model, stage.tokenizer, experiment))
        cost = stage_cost(stage, experiment, rows, split_counts(data))
        estimates.costs[name, experiment.name] = cost
        if options.measure:
            report_progress(f"steps of {name}, {experiment.name}")
            if reason := measured.measure(cost):
                notes.append(f"{name}, {experiment.name}: no steps were measured, since {reason}.")
    _score_and_share(estimates, report_progress)
    if builder.stand_ins:
        names = ", ".join(sorted(builder.stand_ins))
        notes.append(f"The tokenizers of {names} cannot be read here, so that no rows were inspected.")
    try:
        check_output(config, planned.folder, planned.plans)
    except UserError as error:
        notes.append(f"It would be refused: {error}.")
    return estimates


def _score_and_share(estimates: Estimates, report_progress: Callable[[str], None]) -> None:
    """Adds the costs of scoring, and the features that the arms share."""
    planned, built, data = estimates.planned, estimates.built, estimates.data
    estimates.tasks = _tasks(estimates)
    tested = has_test_questions(planned.config, planned.plans, data.of)
    for arm, experiments in planned.plans[planned.config.seeds[0]].arms.items():
        report_progress(f"scoring of {arm}")
        stage, experiment = built[arm][-1], experiments[-1]
        own = data.of(experiment) if estimates.builder.reads_tokenizer(stage) else None
        questions = count_questions(planned.config, experiment, data.of(experiment), tested)
        if questions is None and estimates.tasks:
            questions, note = 0, "The data is not there, so that of the questions only those of the tasks are counted."
            estimates.notes += [note] if note not in estimates.notes else []
        estimates.scoring[arm] = scoring_cost(stage, experiment, own, questions, list(estimates.tasks.values()))
    plans = [*planned.plans.values(), *planned.trials.values()]
    sets = feature_sets(plans, built, data.of)
    estimates.features = [
        (one, counted(one.stage.experiment.name, partial(encoder_flops, one.stage.model))) for one in sets
    ]


def _tasks(estimates: Estimates) -> dict[str, tuple[int, int]]:
    """Returns {task: (questions, tokens of an answer)} of the tasks whose rows can be read; others are noted."""
    found, evaluate = {}, estimates.planned.config.evaluate
    for name, task in estimates.planned.tasks.items():
        try:
            asked = ask_tasks({name: task}, evaluate.limit if evaluate else None)
        except UserError as error:
            estimates.notes.append(f"Task {name} is left out of the scoring: {error}.")
            continue
        found[name] = len(asked.questions[name].questions), task.config.answer.tokens
    return found


def _built(
    path: Path, overrides: Sequence[str], report_progress: Callable[[str], None]
) -> tuple[PlannedComparison, OfflineBuilder, dict[str, list[Stage]]]:
    """Plans the comparison and builds its stages on the meta device; under "" that of the shared encoder."""
    report_progress("the arms")
    planned = plan_comparison(load_config(ComparisonConfig, path, overrides), path)
    config, builder = planned.config, OfflineBuilder()
    for experiment in (one for one in _experiments(planned) if one.data is not None):
        with suppress(UserError):
            experiment.data.component(experiment.data.config).prepare_tokenizer()
    built = {"": [builder.build(planned.encoders[0])]} if planned.encoders else {}
    by_seed = [plan.arms for plan in (*planned.plans.values(), *planned.trials.values())]
    match_tokens(by_seed, planned.baseline, config, builder.build)
    built |= plan_alike(by_seed, config.lineage, builder.build)
    if config.match in SIZES:
        report_progress(f"match: {config.match}")
        try:
            match_sizes(by_seed, planned.baseline, config.match)
            built |= {arm: [builder.build(stage) for stage in stages] for arm, stages in by_seed[0].items()}
        except UserError as error:  # such as data that match: flops needs and that is not there
            builder.notes.append(f"The sizes are those of the files, match: {config.match} was not solved: {error}.")
    return planned, builder, built


def _experiments(planned: PlannedComparison) -> Iterator[ExperimentConfig]:
    yield from planned.encoders[:1]
    for stages in planned.plans[planned.config.seeds[0]].arms.values():
        yield from stages


def _device(options: PlanOptions, planned: PlannedComparison) -> Device:
    """Returns the device that is planned for."""
    if options.device is not None:
        return named_device(options.device)
    last = planned.plans[planned.config.seeds[0]].arms[planned.baseline][-1]
    return device_here(last.trainer.accelerator)
