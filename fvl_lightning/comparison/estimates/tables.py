"""Tables of a comparison's plan for a terminal of 80 columns."""

from collections.abc import Iterator

from rich.table import Table

from fvl_lightning.comparison.result_files.plan import ComparisonPlan, PlannedRuns
from fvl_lightning.core.terminal import bytes_in_words, counted_table, plural

UNKNOWN = "?"


def plan_tables(plan: ComparisonPlan) -> Iterator[Table | str]:
    """Yields the tables and lines that show a plan."""
    yield _sizes(plan)
    yield _work(plan)
    yield _costs(plan)
    yield _scoring(plan)
    yield from _summary(plan)
    yield from plan.notes


def _sizes(plan: ComparisonPlan) -> Table:
    table = counted_table(["arm", "stage", "parameters", "trained", "image tokens", "disk of a run"])
    table.title = "size of each training"
    for stage in plan.stages:
        tokens = f"{stage.image_tokens:,}" if stage.image_tokens else ""
        sizes = short(stage.parameters), short(stage.trained), tokens, bytes_in_words(stage.disk_bytes)
        table.add_row(stage.arm, stage.stage, *sizes)
    return table


def _work(plan: ComparisonPlan) -> Table:
    table = counted_table(["arm", "stage", "steps", "samples", "tokens a row", "FLOPs a sample"])
    table.title = "work of each training"
    for stage in plan.stages:
        counts = f"{stage.steps:,}", short(stage.samples), f"{stage.row_tokens:,}", short(stage.sample_flops)
        table.add_row(stage.arm, stage.stage, *counts)
    return table


def _costs(plan: ComparisonPlan) -> Table:
    table = counted_table(["arm", "stage", "FLOPs", "memory", "hours", "hours are"])
    memory = "" if plan.device_memory is None else f", {bytes_in_words(plan.device_memory)}"
    table.title = f"costs of each training (device: {plan.device}{memory})"
    for stage in plan.stages:
        held = UNKNOWN if stage.memory_bytes is None else bytes_in_words(stage.memory_bytes)
        devices = "" if stage.devices == 1 else f" x {stage.devices}"
        hours = f"{hours_in_words(stage.hours)}{devices}"
        table.add_row(stage.arm, stage.stage, short(stage.flops), f"{held}{devices}", hours, stage.hours_from)
    return table


def _scoring(plan: ComparisonPlan) -> Table:
    table = counted_table(["arm", "FLOPs a question", "questions", "FLOPs", "hours"])
    table.title = f"scoring of one cell, controls{',' if plan.tasks else ' and'} further splits{_tasks(plan)} included"
    for arm in plan.scoring:
        table.add_row(
            arm.arm, short(arm.question_flops), UNKNOWN if arm.questions is None else f"{arm.questions:,}",
            UNKNOWN if arm.flops is None else short(arm.flops), hours_in_words(arm.hours),
        )  # fmt: skip
    return table


def _tasks(plan: ComparisonPlan) -> str:
    return f" and {plural(len(plan.tasks), 'task')}" if plan.tasks else ""


def _summary(plan: ComparisonPlan) -> Iterator[str]:
    counts = f"{plural(len(plan.arms), 'arm')} x {plural(len(plan.seeds), 'seed')}"
    yield f"cells: {counts} = {_counted(plan.cells)}, {plan.jobs} at a time"
    if plan.trials.total:
        yield f"trials of learning rates: {_counted(plan.trials)}"
    if plan.encoders.total:
        yield f"shared encoders, one for each seed: {_counted(plan.encoders)}"
    if (cache := plan.feature_cache) is not None:
        many = UNKNOWN if cache.images is None else f"{cache.images:,}"
        size = UNKNOWN if cache.bytes is None else bytes_in_words(cache.bytes)
        encoders = "" if cache.encoders == 1 else f" x {cache.encoders} encoders"
        yield f"shared features: {many} images{encoders}, {short(cache.image_flops)}FLOPs an image, {size}"
    totals = plan.totals
    yield f"FLOPs: {short(totals.flops)} in all, {short(totals.flops_left)} left"
    yield (
        f"device hours: {hours_in_words(totals.device_hours)} in all, {hours_in_words(totals.device_hours_left)} left; "
        f"about {hours_in_words(totals.hours_left)} hours to the end"
    )
    yield f"disk: {bytes_in_words(totals.disk_left)} for what is left, {bytes_in_words(totals.disk_free)} are free"
    rows = dict.fromkeys(stage.rows for stage in plan.stages)
    yield f"Operations are counted on shapes, two for each multiply-add; rows: {'; '.join(rows)}."


def _counted(runs: PlannedRuns) -> str:
    return f"{runs.total:,}, {runs.finished:,} finished"


def hours_in_words(hours: float | None) -> str:
    """Formats hours with two significant digits: 0.012, 3.4, 120."""
    if hours is None:
        return UNKNOWN
    return f"{hours:,.0f}" if hours >= 9.95 else f"{hours:.2g}"


def short(number: float) -> str:
    """Formats a count with a suffix for 10^3, 10^6, ...: 462M, 1.3P."""
    for suffix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g} {suffix}"
    return f"{number:.0f}"
