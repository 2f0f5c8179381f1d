"""The measures of a comparison over subsets: those of its whole models, and what the trainings on subsets show."""

from collections.abc import Sequence

import numpy as np

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.ranking.agreement import SourceMeasure
from fvl_lightning.attribution.ranking.section import NAME, TITLE, section_of
from fvl_lightning.attribution.retrained.arms import SubsetArms, read_places, subset_arms
from fvl_lightning.attribution.retrained.shapley import leave_one_out
from fvl_lightning.attribution.retrained.worths import all_worths
from fvl_lightning.reporting.section import PER_SOURCE, Section

OF_RUNS = {"gates": "gates", "knock_out": "knock-out losses", "gradients": "gradient shares"}
"""{section of a run: what its numbers are called}"""
SHARES = ("gates", "gradients")
"""Those whose numbers add up to one."""


def ranking_section(opened: OpenedComparison, names: Sequence[str] = tuple(OF_RUNS)) -> Section:
    """Returns the section of a comparison; it has no values where no arms differ in their sources alone.

    The measures are those of the arm with all sources, and of arms of another fusion with all sources, such as one with
    gates.

    Args:
        opened: the comparison.
        names: the sections of runs that can be made.

    Raises:
        DataError: a run's files cannot be read.
    """
    places = read_places(opened.results)
    arms = subset_arms(places, opened.results.differences)
    if arms is None:
        return Section(NAME, TITLE, ["No two arms differ in their sources alone, so that there is nothing to rank by."])
    whole = arms.whole(places)
    sections = opened.sections(list(names), whole) if whole and names else {}
    measures = []
    for name, by_arm in sections.items():
        for arm, by_seed in by_arm.items():
            numbers = {seed: one.values[PER_SOURCE] for seed, one in by_seed.items() if one.values.get(PER_SOURCE)}
            if numbers:
                measures.append(SourceMeasure(f"{OF_RUNS.get(name, name)} of {arm}", numbers, name in SHARES))
    first, *further = retrained_measures(opened, arms)
    return section_of([*further, *measures], first, arms.sources)


def retrained_measures(opened: OpenedComparison, arms: SubsetArms) -> list[SourceMeasure]:
    """Returns what trainings on subsets show, the reference first: Shapley values, if no subset is missing."""
    found = all_worths(opened.results, arms)
    measures = []
    for each in found:
        rows = {"Shapley values": each.whole.shapley, "losses of leaving out": leave_one_out(each.whole.table)}
        size = "" if each.size == "natural" else " at the size of all sources"
        for name, table in rows.items():
            known = np.isfinite(table).all(-1)
            numbers = {
                seed: dict(zip(arms.sources, table[row].tolist(), strict=True))
                for row, seed in enumerate(each.whole.seeds)
                if known[row]
            }
            if numbers:
                measures.append(SourceMeasure(name + size, numbers))
    return measures or [SourceMeasure("losses of leaving out", {})]
