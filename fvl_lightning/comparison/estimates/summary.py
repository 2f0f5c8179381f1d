"""Puts the estimates of a comparison together as its plan, and writes plan.json."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from fvl_lightning.comparison.cell import RESULT
from fvl_lightning.comparison.checks.before_start import missing_feature_bytes, unfinished_work
from fvl_lightning.comparison.checks.disk import disk_needed
from fvl_lightning.comparison.estimates.costs import StageCost
from fvl_lightning.comparison.estimates.estimate import ENCODER, Estimates, PlanOptions, estimate_comparison
from fvl_lightning.comparison.estimates.tables import plan_tables
from fvl_lightning.comparison.result_files.plan import (
    ComparisonPlan,
    PlannedCache,
    PlannedRuns,
    PlannedScoring,
    PlannedStage,
    PlanTotals,
)
from fvl_lightning.comparison.tuning import trials
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.jsonl import write_sealed
from fvl_lightning.core.terminal import bytes_in_words
from fvl_lightning.doctor.resources import MEMORY_HEADROOM, bytes_left_by_run, free_space, ways_to_save_memory
from fvl_lightning.runs.folder import RunFolder

PLAN = "plan.json"


def show_plan(
    path: Path, overrides: Sequence[str], options: PlanOptions, report_progress: Callable[[str], None]
) -> list[Table | str]:
    """Plans a comparison, writes plan.json into its folder, and returns the tables and lines that show the plan.

    Args and errors are those of estimate_comparison.
    """
    estimates = estimate_comparison(path, overrides, options, report_progress)
    plan = plan_of(estimates)
    return [*plan_tables(plan), f"plan: {write_plan(plan, estimates.planned.folder)}"]


def plan_of(estimates: Estimates) -> ComparisonPlan:
    """Returns the plan of a comparison from the estimates of its parts."""
    planned, config = estimates.planned, estimates.planned.config
    arms = list(planned.plans[config.seeds[0]].arms)
    stages = [_stage(estimates, arm, cost) for (arm, _), cost in estimates.costs.items()]
    scoring = [_scoring(estimates, arm) for arm in arms]
    cells = _runs(folder for plan in planned.plans.values() for folder in plan.folders.values())
    factors = config.tune.learning_rate_factors if config.tune else []
    tried = _runs(folder for plan in trials(planned.trials, factors).values() for folder in plan.folders.values())
    encoders = PlannedRuns(total=len(planned.encoders), finished=sum(map(_is_trained, planned.encoders)))
    cache = _feature_cache(estimates)
    return ComparisonPlan(
        comparison=config.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        arms=arms,
        seeds=config.seeds,
        jobs=config.jobs,
        device=estimates.device.name,
        device_memory=estimates.device.memory,
        cells=cells,
        trials=tried,
        encoders=encoders,
        stages=stages,
        scoring=scoring,
        feature_cache=cache,
        totals=_totals(estimates, stages, scoring, cache),
        notes=[*estimates.notes, *_assumptions(estimates, stages, scoring)],
        tasks={name: asked for name, (asked, _) in estimates.tasks.items()},
    )


def write_plan(plan: ComparisonPlan, folder: Path) -> Path:
    """Writes plan.json into the folder of the comparison, over an earlier one, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / PLAN, plan.plain())
    return folder / PLAN


def _stage(estimates: Estimates, arm: str, cost: StageCost) -> PlannedStage:
    duration = estimates.clock.training(cost, estimates.finished_cells(arm))
    parameters, trained = cost.parameters
    return PlannedStage(
        arm=arm,
        stage=cost.experiment.name,
        parameters=parameters,
        trained=trained,
        image_tokens=cost.image_tokens,
        steps=cost.experiment.trainer.max_steps,
        samples=cost.samples,
        rows=cost.rows.source,
        row_tokens=cost.rows.tokens,
        row_images=cost.rows.images,
        sample_flops=cost.sample_flops,
        flops=cost.flops,
        memory_bytes=cost.memory,
        disk_bytes=bytes_left_by_run(cost.stage),
        devices=cost.experiment.trainer.world_size,
        hours=duration.hours,
        hours_from=duration.source,
    )


def _scoring(estimates: Estimates, arm: str) -> PlannedScoring:
    precision = estimates.planned.plans[estimates.planned.config.seeds[0]].arms[arm][-1].trainer.precision
    cost = estimates.scoring[arm]
    hours = None if cost.flops is None else estimates.clock.computed(cost.flops, precision).hours
    return PlannedScoring(
        arm=arm, question_flops=cost.question_flops, questions=cost.questions, flops=cost.flops, hours=hours
    )


def _runs(folders: Iterable[Path]) -> PlannedRuns:
    """Returns how many cells there are in all, and how many of them are finished."""
    finished = [(folder / RESULT).is_file() for folder in folders]
    return PlannedRuns(total=len(finished), finished=sum(finished))


def _is_trained(encoder: ExperimentConfig) -> bool:
    return any(run.finished for run in RunFolder.named(Path(encoder.output), encoder.name))


def _feature_cache(estimates: Estimates) -> PlannedCache | None:
    """Returns the features that the arms share; None where none are cached."""
    if not estimates.features:
        return None
    known = all(one.images is not None for one, _ in estimates.features)
    flops = sum(one.encoders * (one.images or 0) * count for one, count in estimates.features)
    return PlannedCache(
        encoders=estimates.features[0][0].encoders,
        images=sum(one.images or 0 for one, _ in estimates.features) if known else None,
        image_flops=max(count for _, count in estimates.features),
        bytes=sum(one.bytes or 0 for one, _ in estimates.features) if known else None,
        flops=float(flops) if known else None,
    )


class _Sums:
    """Operations and hours of devices that are added up; hours are None once those of a part are not known."""

    def __init__(self) -> None:
        self.flops, self.hours = 0.0, 0.0
        self.known = True

    def add(self, flops: float | None, hours: float | None, times: int = 1) -> None:
        self.flops += times * (flops or 0.0)
        self.hours += times * (hours or 0.0)
        self.known &= hours is not None or times == 0

    def __add__(self, other: "_Sums") -> "_Sums":
        both = _Sums()
        both.flops, both.hours = self.flops + other.flops, self.hours + other.hours
        both.known = self.known & other.known
        return both

    @property
    def device_hours(self) -> float | None:
        return self.hours if self.known else None


def _totals(
    estimates: Estimates, stages: list[PlannedStage], scoring: list[PlannedScoring], cache: PlannedCache | None
) -> PlanTotals:
    planned, config = estimates.planned, estimates.planned.config
    shared, shared_left, cells, cells_left = _Sums(), _Sums(), _Sums(), _Sums()
    encoder = next((stage for stage in stages if stage.arm == ENCODER), None)
    if encoder is not None:
        hours = None if encoder.hours is None else encoder.hours * encoder.devices
        untrained = sum(not _is_trained(one) for one in planned.encoders)
        shared.add(encoder.flops, hours, len(planned.encoders))
        shared_left.add(encoder.flops, hours, untrained)
    missing = missing_feature_bytes(planned, estimates.built, estimates.data.of)
    if cache is not None and cache.flops is not None:
        hours = estimates.clock.computed(cache.flops, "32-true").hours
        part = missing / cache.bytes if cache.bytes else 0.0
        shared.add(cache.flops, hours)
        shared_left.add(cache.flops * part, 0.0 if hours is None and not part else hours and hours * part)
    factors = config.tune.learning_rate_factors if config.tune else []
    for plans, scored in ((planned.plans, True), (trials(planned.trials, factors), False)):
        for label, folder in ((label, folder) for plan in plans.values() for label, folder in plan.folders.items()):
            arm = label if scored else label.split(", learning rates x ")[0]
            left = int(not (folder / RESULT).is_file())
            for stage in (stage for stage in stages if stage.arm == arm):
                hours = None if stage.hours is None else stage.hours * stage.devices
                cells.add(stage.flops, hours)
                cells_left.add(stage.flops, hours, left)
            for one in (one for one in scoring if one.arm == arm and scored):
                hours = 0.0 if one.flops is None else one.hours
                cells.add(one.flops, hours)
                cells_left.add(one.flops, hours, left)
    work = unfinished_work(planned, estimates.built)
    everything, left_over = shared + cells, shared_left + cells_left
    devices = max((stage.devices for stage in stages), default=1)
    at_a_time = min(config.jobs, max(1, len(work)))
    wall = shared_left.hours + cells_left.hours / devices / at_a_time
    return PlanTotals(
        flops=everything.flops,
        flops_left=left_over.flops,
        device_hours=everything.device_hours,
        device_hours_left=left_over.device_hours,
        hours_left=wall if left_over.known else None,
        disk_left=disk_needed(work, config.jobs) + missing,
        disk_free=free_space(planned.folder)[1],
    )


def _assumptions(
    estimates: Estimates, stages: list[PlannedStage], scoring: list[PlannedScoring]
) -> Iterator[str]:
    """Yields what the numbers rest on, and what does not fit."""
    device = estimates.device
    precisions = {cost.experiment.trainer.precision for cost in estimates.costs.values()}
    if any(stage.hours_from.startswith("computed") for stage in stages):
        yield from filter(None, (estimates.clock.assumption(precision) for precision in sorted(precisions)))
        yield "Computed hours leave out the loading of data and the exchange between devices."
    if any(stage.hours is None for stage in stages):
        yield (
            "Hours are not known for this device: --device NAME or --device-tflops X computes them, --measure takes a "
            "few steps of each stage here."
        )
    if None in (one.questions for one in scoring):
        yield "The operations of scoring are left out of the sums, since not all questions are there to be counted."
    if device.memory is None:
        return
    for (arm, name), cost in estimates.costs.items():
        if cost.memory is not None and cost.memory > MEMORY_HEADROOM * device.memory:
            fits = "does not fit into" if cost.memory > device.memory else "leaves less than a tenth free of"
            ways = "; ".join(ways_to_save_memory(cost.experiment)) or "more devices under fsdp, or LoRA"
            yield (
                f"{arm}, {name} takes {bytes_in_words(cost.memory)}, which {fits} the {bytes_in_words(device.memory)} "
                f"of {device.name}: try {ways}."
            )
