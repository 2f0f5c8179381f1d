"""The section that puts gates, knock-out and gradients beside what trainings on subsets of the sources show."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fvl_lightning.attribution.ranking.agreement import Agreement, SourceMeasure, agreement, ranks
from fvl_lightning.comparison.statistics.seed_means import SeedMeans, seed_means
from fvl_lightning.reporting.section import Section
from fvl_lightning.reporting.style import DPI, INK, wrapped
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score, interval, signed

NAME, TITLE = "ranking", "The measures side by side"


def section_of(measures: Sequence[SourceMeasure], reference: SourceMeasure, sources: Sequence[str]) -> Section:
    """Returns the section that compares measures with a reference.

    Args:
        measures: such as gates, knock-out and gradient share.
        reference: such as Shapley values.
        sources: all sources, in order.
    """
    found = {measure.name: agreement(measure, reference, sources) for measure in measures}
    compared = {name: each for name, each in found.items() if each is not None}
    if not compared:
        return Section(NAME, TITLE, [f"No run has another measure beside {reference.name} on the same seeds."])
    shown = [reference, *(measure for measure in measures if measure.name in compared)]
    means = {measure.name: seed_means(measure.table([*measure.by_seed], sources)) for measure in shown}
    disagreements = [text for name, each in compared.items() for text in _disagreements(name, each, reference.name)]
    return Section(
        NAME,
        TITLE,
        [
            _finding(compared, reference.name),
            " ".join(disagreements) or f"No measure is shown to order two sources otherwise than {reference.name}.",
            f"Rank correlations are of the {len(sources)} sources, for every seed by itself, with 95 % intervals (t) "
            "over seeds. Two sources count as ordered otherwise where the intervals of both differences exclude zero; "
            "nothing is adjusted for the number of pairs.",
        ],
        [_numbers_grid(means, sources), _agreement_grid(compared, reference.name)],
        {f"{NAME}_measures": _figure(means, sources)},
        {
            "reference": reference.name,
            "measures": {
                each.name: {str(seed): dict(numbers) for seed, numbers in each.by_seed.items()} for each in shown
            },
            "agreement": {name: _plain(each) for name, each in compared.items()},
            "disagreements": disagreements,
        },
        {f"{NAME}_measures": "Rank of each source by each measure, with its mean over seeds; 1 is the most."},
    )


def _finding(compared: Mapping[str, Agreement], reference: str) -> str:
    parts = [f"{_estimate(each.spearman)} for {name}" for name, each in compared.items()]
    return f"Spearman's correlation with {reference}: {', '.join(parts)}."


def _disagreements(name: str, each: Agreement, reference: str) -> list[str]:
    """Returns a sentence for every pair that a measure orders otherwise, and for shares of what is worth nothing."""
    texts = [
        f"{name} put `{high}` above `{low}`, but {reference} put `{low}` above `{high}`."
        for high, low in each.contradicted
    ]
    texts += [
        f"{name} give `{source}` an equal share or more, but {reference} do not show that it is worth anything."
        for source in each.overrated
    ]
    return [text[:1].upper() + text[1:] for text in texts]


def _estimate(means: SeedMeans) -> str:
    mean, ends = float(means.mean), _within(means.interval)
    if not isfinite(mean):
        return "not known"
    return f"{signed(mean)} ({interval(ends)})" if isfinite(ends[0]) else signed(mean)


def _within(ends: Any) -> tuple[float, float]:
    """Returns the ends of an interval of a correlation, cut at -1 and 1."""
    return float(np.clip(ends[0], -1, 1)), float(np.clip(ends[1], -1, 1))


def _numbers_grid(means: Mapping[str, SeedMeans], sources: Sequence[str]) -> Grid:
    rows = []
    for name, found in means.items():
        own = ranks(found.mean)
        rows.append([name, *(f"{format_score(float(found.mean[i]))} ({own[i]:g})" for i in range(len(sources)))])
    return Grid("Mean of each measure, and rank", ["measure", *sources], rows)


def _agreement_grid(compared: Mapping[str, Agreement], reference: str) -> Grid:
    rows = []
    for name, each in compared.items():
        numbers = [
            text
            for means in (each.spearman, each.kendall)
            for text in (signed(float(means.mean)), interval(_within(means.interval)))
        ]
        of_means = signed(each.of_means) if isfinite(each.of_means) else ABSENT
        rows.append([name, str(int(each.spearman.seeds)), *numbers, of_means])
    header = ["measure", "seeds", "Spearman", "95 %", "Kendall's tau-b", "95 %", "Spearman of the means"]
    return Grid(f"Rank correlation with {reference}", header, rows)


def _figure(means: Mapping[str, SeedMeans], sources: Sequence[str]) -> Figure:
    table = np.array([ranks(found.mean) for found in means.values()])
    figure = Figure(figsize=(2.8 + 1.1 * len(sources), 0.9 + 0.55 * len(means)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap="Blues_r", vmin=1, vmax=len(sources) + 2, aspect="auto")
    for row, (name, own) in enumerate(zip(means, table, strict=True)):
        for column, rank in enumerate(own):
            text, color = f"{rank:g}\n{format_score(float(means[name].mean[column]))}", "white" if rank < 2.5 else INK
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8.5)
    axes.set_xticks(range(len(sources)), sources)
    axes.set_yticks(range(len(means)), [wrapped(name) for name in means])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    return figure


def _plain(each: Agreement) -> dict[str, Any]:
    def number(value: Any) -> float | None:
        return float(value) if isfinite(value) else None

    def plain_means(means: SeedMeans) -> dict[str, Any]:
        return {"mean": number(means.mean), "interval": [number(end) for end in _within(means.interval)]}

    return {
        "spearman": plain_means(each.spearman),
        "kendall": plain_means(each.kendall),
        "spearman_of_means": number(each.of_means),
        "contradicted": [list(pair) for pair in each.contradicted],
        "overrated": list(each.overrated),
    }
