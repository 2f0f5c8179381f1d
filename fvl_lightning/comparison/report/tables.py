"""Tables of a report about differences, their uncertainty and their cost, and the verdicts in sentences."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from fvl_lightning.comparison.result_files.cell import Measurements
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics, Contrast
from fvl_lightning.evaluation.metrics.lookup import metric_of, split_score
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score, interval, signed

ARM_HEADER = ["arm", "mean", "SD over seeds", "seeds"]
CONTRAST_HEADER = ["arm", "difference", "95 % interval", "p (Holm)", "verdict"]
IMAGE_HEADER = ["arm", "difference", "95 % interval"]


def statistics_grids(comparison: Comparison) -> list[Grid]:
    """Returns the tables over seeds: arms, contrasts, scores, intervals over images, hints by kind; none for one."""
    statistics, images = comparison.statistics, comparison.statistics.images
    if len(comparison.seeds) == 1:
        return []
    arms = [[arm.arm, format_score(arm.mean), format_score(arm.sd), str(arm.seeds)] for arm in statistics.arms]
    contrasts = [_contrast_row(contrast, statistics.alpha) for contrast in statistics.contrasts]
    grids = [
        Grid(f"{comparison.metric_title}, over seeds", ARM_HEADER, arms),
        Grid(f"Difference to {statistics.baseline}", CONTRAST_HEADER, contrasts, pooling_note(statistics)),
    ]
    if comparison.cells:
        grids.append(_seeds_grid(comparison))
    if images.arms:
        rows = [[arm, signed(entry.estimate), interval(entry.interval)] for arm, entry in images.arms.items()]
        note = (
            f"{images.label.capitalize()}: the variation over other test images, not over training again with other "
            "seeds."
        )
        grids.append(Grid(f"Difference to {statistics.baseline} over images", IMAGE_HEADER, rows, note))
    if statistics.exploratory.contrasts:
        grids.append(_exploratory(statistics))
    return grids


def verdict_section(comparison: Comparison) -> str:
    """Returns the verdicts in sentences; for one seed, that it shows no ranking."""
    statistics = comparison.statistics
    if len(comparison.seeds) == 1:
        return (
            "> **One seed ranks nothing.** Every arm was trained once, so a difference between two arms may be chance. "
            "The arms are listed in the order of the configuration, and no winner is named."
        )
    lines = [f"> - {contrast.sentence}" for contrast in (*statistics.contrasts, *statistics.pairs)]
    lines += [f"> - {note}" for note in (pooling_note(statistics), *statistics.notes) if note]
    head = (
        f"> **What {len(comparison.seeds)} seeds show** ({comparison.metric_title}, against "
        f"{statistics.baseline}; a difference below {statistics.smallest_effect:g} does not matter):\n>\n"
    )
    return "\n\n".join([head + "\n".join(lines), sensitivity_text(statistics)])


def sensitivity_text(statistics: ComparisonStatistics) -> str:
    """Returns what these seeds could have shown, and how many would show the smallest effect."""
    sensitivity = statistics.sensitivity
    if sensitivity is None:
        return "Nothing can be tested with these seeds, so it is unknown what they could have shown."
    low, high = sensitivity.seeds_needed
    seeds = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"The residual SD of a cell, once the effects of its arm and its seed are removed, is "
        f"{sensitivity.residual_sd:.3g} ({sensitivity.degrees} degrees of freedom). With "
        f"{len(statistics.tested_seeds)} seeds a true difference of {sensitivity.detectable:.3g} is found with a "
        f"probability of 80 %; to find {statistics.smallest_effect:g} it takes {seeds} seeds (from the 95 % interval "
        "of that SD, never from the observed differences)."
    )


def differences_grid(comparison: Comparison) -> Grid:
    """Returns the configuration values in which arms differ, the baseline's first."""
    differing, baseline = comparison.differences, comparison.statistics.baseline
    others = [arm for arm in differing if arm != baseline]
    keys = dict.fromkeys(key for arm in others for key in differing[arm])
    rows = []
    for key in keys:
        base = next(differing[arm][key][0] for arm in others if key in differing[arm])
        values = (differing[arm].get(key, [None, base])[1] for arm in others)
        rows.append([key, *(_value(value) for value in (base, *values))])
    start = {arm: result.same_start for arm, result in comparison.arms.items()}
    shares = [f"{start[arm]:.1%}" if isfinite(start.get(arm, float("nan"))) else ABSENT for arm in (baseline, *others)]
    rows.append([f"weights that start as {baseline}'s", *shares])
    return Grid("What differs", ["key", baseline, *others], rows)


def cost_grid(arms: Mapping[str, Measurements]) -> Grid:
    """Returns size, operations, speed and time of every arm."""
    results = arms.values()
    rows = [
        ["parameters", *(f"{result.parameters:,.0f}" for result in results)],
        ["trainable in the last stage", *(f"{result.trainable:,.0f}" for result in results)],
        ["image tokens in the language model", *(f"{result.image_tokens:,.0f}" for result in results)],
        ["training, MFLOPs per sample", *(f"{result.training_flops / 1e6:,.1f}" for result in results)],
        ["inference, MFLOPs per question", *(f"{result.inference_flops / 1e6:,.1f}" for result in results)],
        ["tokens per second", *(f"{result.tokens_per_second:,.0f}" for result in results)],
        ["peak memory (MiB)", *(f"{result.peak_memory_bytes / 2**20:,.0f}" for result in results)],
        ["training time, all stages (s)", *(f"{result.seconds:,.0f}" for result in results)],
    ]
    note = (
        "Operations are counted on the real model with real data. Training is forward and backward on a batch of the "
        "last stage, with the encoder's forward; inference is an image and a question, up to the first token of the "
        "answer."
    )
    return Grid("Cost", ["", *arms], rows, note)


def reference_grids(comparison: Comparison) -> list[Grid]:
    """Returns the table of published scores; none where the comparison names none."""
    reference = comparison.reference
    if reference is None:
        return []
    shown = {arm: scores for arm, scores in reference.scores.items() if scores}
    names = list(dict.fromkeys(name for scores in shown.values() for name in scores))
    rows = [
        [name, *(f"{scores[name]:g}" if name in scores else ABSENT for scores in shown.values())] for name in names
    ]
    note = f"{reference.source}. These are other models and other data: no test, interval or verdict uses them."
    return [Grid("As published", ["score", *(f"{arm} (published)" for arm in shown)], rows, note)]


def metric_title(score: str) -> str:
    """Returns what a report calls a score such as accuracy/macro."""
    return metric_of(score).describe(split_score(score)[1])


def _seeds_grid(comparison: Comparison) -> Grid:
    """Returns the score of every arm with every seed; a cell that is not finished has none."""
    scores = {(cell.arm, cell.seed): cell.result.score(comparison.metric) for cell in comparison.cells}
    rows = [[arm, *(format_score(scores.get((arm, seed))) for seed in comparison.seeds)] for arm in comparison.arms]
    header = ["arm", *(f"seed {seed}" for seed in comparison.seeds)]
    return Grid(f"{comparison.metric_title}, of each seed", header, rows)


def pooling_note(statistics: ComparisonStatistics) -> str:
    """Returns which verdicts rest on pooling, and what that means; empty where none does."""
    weak = {c.arm: c.p_paired for c in statistics.contrasts if rests_on_pooling(c, statistics.alpha)}
    if not weak:
        return ""
    arms = ", ".join(f"{arm} (p = {p:.2g})" for arm, p in weak.items())
    return (
        f"Rests on pooling: a t test of this arm and {statistics.baseline} alone, Holm-adjusted too, does not confirm "
        f"the verdict: {arms}. The pooled test assumes that the differences of all arms vary equally over seeds."
    )


def verdict_text(contrast: Contrast, alpha: float) -> str:
    """Returns a verdict as tables and figures show it: one that rests on pooling says so."""
    return f"{contrast.verdict}, rests on pooling" if rests_on_pooling(contrast, alpha) else contrast.verdict


def rests_on_pooling(contrast: Contrast, alpha: float) -> bool:
    """Returns whether an arm is better or worse by the pooled test, but not by a t test of this pair alone."""
    return contrast.verdict in ("better", "worse") and contrast.p_paired > alpha


def _contrast_row(contrast: Contrast, alpha: float) -> list[str]:
    p = f"{contrast.p_holm:.2g}" if isfinite(contrast.p_holm) else ABSENT
    verdict = verdict_text(contrast, alpha)
    return [contrast.arm, signed(contrast.estimate), interval(contrast.interval), p, verdict]


def _exploratory(statistics: ComparisonStatistics) -> Grid:
    hints = {(hint.group, hint.arm): hint for hint in statistics.exploratory.contrasts}
    groups, arms = (list(dict.fromkeys(names)) for names in zip(*hints, strict=True))
    rows = [
        [group, *(f"{signed(hint.estimate)} (q {hint.q:.2g})" if (hint := hints.get((group, arm))) else ABSENT
                  for arm in arms)]
        for group in groups
    ]  # fmt: skip
    label = statistics.exploratory.label
    note = f"{label[0].upper()}{label[1:]}."
    return Grid(f"Difference to {statistics.baseline} by kind", ["kind", *arms], rows, note)


def _value(value: Any) -> str:
    if value is None:
        return ABSENT
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
