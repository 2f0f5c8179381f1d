"""Sections of the runs of a comparison as one: the number of each source in each arm, averaged over seeds."""

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any

from matplotlib.figure import Figure

from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.statistics.means import mean_estimate
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.section import PER_SOURCE, PER_SOURCE_MEANS, Section
from fvl_lightning.reporting.style import DPI, INK, MUTED, clean_axes, colors, few_ticks, legend_above, wrapped
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score

Numbers = Mapping[str, Mapping[int, Mapping[str, float]]]
"""{arm: {seed: {source: number}}}"""
ROW_HEIGHT = 0.55
"""Inches of an arm in the figure."""


def numbers_of(sections: Mapping[str, Mapping[int, Section]]) -> Numbers:
    """Returns the numbers of the sources from {arm: {seed: section}}; a section without any is left out."""
    return {
        arm: {seed: section.values[PER_SOURCE] for seed, section in by_seed.items() if section.values.get(PER_SOURCE)}
        for arm, by_seed in sections.items()
    }


def averaged_section(name: str, sections: Mapping[str, Mapping[int, Section]]) -> Section:
    """Returns the section of a comparison that has the number of each source in each arm.

    Args:
        name: the name of the section in a run.
        sections: {arm: {seed: its section of that name}}, at least one.
    """
    first = next(section for by_seed in sections.values() for section in by_seed.values())
    means = next((s.values[PER_SOURCE_MEANS] for by in sections.values() for s in by.values()
                  if PER_SOURCE_MEANS in s.values), first.title.lower())  # fmt: skip
    numbers = {arm: by_seed for arm, by_seed in numbers_of(sections).items() if by_seed}
    if not numbers:
        return Section(name, first.title, [f"No arm has such numbers. {first.paragraphs[0]}"], values={"arms": {}})
    estimates = {arm: _estimates(by_seed) for arm, by_seed in numbers.items()}
    seeds = max(len(by_seed) for by_seed in numbers.values())
    over = (
        f"Each number is the mean over {plural(seeds, 'seed')}, and its 95 % interval (t) is over new seeds: the same "
        "questions would be asked again."
        if seeds > 1
        else "The arms have one seed, so that nothing is known about another one."
    )
    without = [arm for arm in sections if arm not in numbers]
    left_out = f" {', '.join(without)}: no such numbers." if without else ""
    return Section(
        name,
        f"{first.title}, averaged over seeds",
        [_finding(estimates, means), f"Shown is {means}. {over}{left_out}"],
        [_grid(estimates, means)],
        {f"{name}_arms": _figure(estimates, means)},
        {"means": means, "arms": _plain(numbers, estimates)},
        {f"{name}_arms": f"{means[:1].upper()}{means[1:]} in every arm, with intervals over seeds."},
    )


def _estimates(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Estimate]:
    """Returns {source: mean over seeds with its interval}; a single seed has none."""
    sources = list(dict.fromkeys(source for numbers in by_seed.values() for source in numbers))
    found = {source: {seed: n[source] for seed, n in by_seed.items() if isfinite(n.get(source, float("nan")))}
             for source in sources}  # fmt: skip
    return {source: mean_estimate([*of.values()], [*of]) for source, of in found.items() if of}


def _finding(estimates: Mapping[str, Mapping[str, Estimate]], means: str) -> str:
    several = {arm: by_source for arm, by_source in estimates.items() if len(by_source) > 1}
    if not several:
        return f"No arm has several sources to compare by {means}."
    first = Counter(max(of, key=lambda source: of[source].value) for of in several.values())
    named = ", ".join(f"`{source}` in {count}" for source, count in first.most_common())
    return f"The highest number is that of {named} of {plural(len(several), 'arm')} with several sources."


def _grid(estimates: Mapping[str, Mapping[str, Estimate]], means: str) -> Grid:
    sources = list(dict.fromkeys(source for by_source in estimates.values() for source in by_source))
    rows = [[arm, *(_cell(by_source.get(source)) for source in sources)] for arm, by_source in estimates.items()]
    return Grid(f"{means[:1].upper()}{means[1:]}", ["arm", *sources], rows)


def _cell(found: Estimate | None) -> str:
    if found is None:
        return ABSENT
    low, high = found.interval
    return f"{format_score(found.value)} ({low:.3f} to {high:.3f})" if isfinite(low) else format_score(found.value)


def _figure(estimates: Mapping[str, Mapping[str, Estimate]], means: str) -> Figure:
    """Draws a row for each arm, and in it a point with its interval for each source."""
    sources = list(dict.fromkeys(source for by_source in estimates.values() for source in by_source))
    figure = Figure(figsize=(8.0, 1.5 + ROW_HEIGHT * len(estimates)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    handles = {}
    for row, by_source in enumerate(reversed([*estimates.values()])):
        for place, (source, color) in enumerate(zip(sources, colors(sources), strict=True)):
            if source in by_source:
                found, y = by_source[source], row + 0.6 * (0.5 - (place + 0.5) / len(sources))
                handles[source] = axes.plot(found.value, y, "o", color=color, markersize=5, zorder=3)[0]
                if isfinite(found.interval[0]):
                    axes.plot(found.interval, [y, y], color=color, linewidth=1.6, zorder=2)
    axes.set_yticks(range(len(estimates)), [wrapped(arm) for arm in reversed([*estimates])], color=INK)
    axes.set_ylim(-0.6, len(estimates) - 0.4)
    axes.xaxis.set_major_locator(few_ticks())
    axes.set_xlabel(means, color=INK)
    clean_axes(axes)
    axes.grid(visible=False, axis="y")
    legend_above(figure, [*handles.values()], [*handles])
    return figure


def _plain(numbers: Numbers, estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {
        arm: {
            source: {
                "mean": found.value,
                "interval": list(found.interval),
                "seeds": {str(seed): n[source] for seed, n in numbers[arm].items() if source in n},
            }
            for source, found in by_source.items()
        }
        for arm, by_source in estimates.items()
    }
