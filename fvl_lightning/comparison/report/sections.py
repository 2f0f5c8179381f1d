"""Sentences of a report about questions, intervals and sample answers, and its table of plugins."""

from collections.abc import Mapping

from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.core.terminal import plural
from fvl_lightning.reporting.tables import Grid

FEW_QUESTIONS = 10
"""With fewer questions of a kind, one answer changes its score by more than ten points."""


def intervals_text(statistics: ComparisonStatistics) -> str:
    """Returns the figure of the intervals, with what its intervals do not show of arms that are equivalent."""
    text = "![differences to the baseline with their intervals](intervals.png)"
    if any(contrast.verdict == "equivalent" for contrast in statistics.contrasts):
        text += (
            "\n\nAn arm is equivalent where the 90 % interval of its difference, adjusted for all arms, lies in the "
            "grey band; the intervals in the figure are wider."
        )
    return text


def questions_text(questions: Mapping[str, int]) -> str:
    """Returns how many questions were asked, and which kinds have so few that their scores say little."""
    if not questions:
        return ""
    few = [f"{kind} ({plural(number, 'question')})" for kind, number in questions.items() if number < FEW_QUESTIONS]
    text = f" The test split has {plural(sum(questions.values()), 'question')}."
    return text + (f" A score of few questions is coarse: {', '.join(few)}." if few else "")


def samples_text(comparison: Comparison) -> str:
    """Returns with which seed the models of the sample answers were trained; empty where that is not known."""
    by_seed: dict[int, list[str]] = {}
    for arm, seed in comparison.sample_seeds.items():
        by_seed.setdefault(seed, []).append(arm)
    if len(by_seed) == 1:
        return f"Answers of the models trained with seed {next(iter(by_seed))}.\n\n"
    listed = "; ".join(f"seed {seed}: {', '.join(arms)}" for seed, arms in by_seed.items())
    return f"Answers of models trained with different seeds ({listed}).\n\n" if by_seed else ""


def plugin_grids(plugins: Mapping[str, str]) -> list[Grid]:
    """Returns a table of the plugins that the arms use, with the hash of each one's code; none without plugins."""
    rows = [[f"`{name}`", f"`{code}`"] for name, code in plugins.items()]
    return [Grid("Code from outside the kit", ["plugin", "hash of its code"], rows)] if rows else []
