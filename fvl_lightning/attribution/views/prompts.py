"""The section "prompts": whether other prompts make other features, and whether these make other answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from textwrap import wrap

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.views.prompt_arms import PromptFeatures, asks_about_prompts, prompt_features, prompts_of
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import Contrast
from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.statistics.means import mean_estimate
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.section import Section
from fvl_lightning.reporting.style import (
    DPI,
    INK,
    MUTED,
    PALETTE,
    clean_axes,
    colors,
    few_ticks,
    legend_above,
    short_names,
)
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score, interval, signed

NAME, TITLE = "prompts", "Prompts: their features and their answers"
FEWEST_ARMS = 4
"""With fewer arms no rank correlation is shown."""
CONTROLS = (
    "How to read the controls: an arm whose prompts ask nothing about the picture shows what any text does. Where it "
    "has the numbers of the others, the meaning of their prompts has no part in them. An arm with copies of the depth "
    "source shows what width alone does, and an arm without prompts what all of them add."
)


@dataclass(frozen=True)
class PromptArm:
    """An arm: its features, its score over seeds, and its difference to the baseline, None for the baseline."""

    features: PromptFeatures
    score: Estimate
    contrast: Contrast | None


def prompts_sections(opened: OpenedComparison, split: str = "test", accelerator: str | None = None) -> list[Section]:
    """Returns the section of a comparison whose arms differ in their prompts; nothing for any other.

    Args:
        opened: the comparison.
        split: the split with the images from which features are computed.
        accelerator: the device; None for that of the training.
    """
    if not asks_about_prompts(opened.results):
        return []
    if not any(prompts_of(next(iter(by_seed.values()))) for by_seed in opened.arms.values()):
        return []
    return [section_of(opened.results, prompt_features(opened, split, accelerator))]


def section_of(results: Comparison, features: Mapping[str, PromptFeatures]) -> Section:
    """Returns the section from the results and {arm: numbers of its features}."""
    contrasts = {contrast.arm: contrast for contrast in results.statistics.contrasts}
    arms = {arm: PromptArm(found, _score(results, arm), contrasts.get(arm)) for arm, found in features.items()}
    baseline = results.statistics.baseline
    rho, count = _correlation(arms, baseline)
    figures, captions = {}, {}
    if any(isfinite(one.features.cka) for arm, one in arms.items() if arm != baseline):
        figures[f"{NAME}_features"] = changes_figure(arms, baseline, results.metric_title)
        captions[f"{NAME}_features"] = (
            f"How far the prompts' features of each arm are from those of {baseline} (1 - linear CKA), and how far its "
            "score is, with the interval of each difference over seeds."
        )
    paragraphs = [_finding(arms, baseline), CONTROLS, _definitions(baseline, results)]
    if isfinite(rho):
        paragraphs.insert(1, (
            f"Over {count} arms with other prompts, the rank correlation of the change of features (1 - CKA) with the "
            f"size of the change of the score is {rho:+.2f} (Spearman); so few arms leave it uncertain."
        ))  # fmt: skip
    tables = [_table(arms, baseline, results.metric_title), _texts(features)]
    return Section(NAME, TITLE, paragraphs, tables, figures, _values(arms, baseline, rho), captions)


def changes_figure(arms: Mapping[str, PromptArm], baseline: str, metric: str) -> Figure:
    """Draws the difference of each arm's score over the difference of its prompts' features."""
    figure = Figure(figsize=(7.2, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
    shown = {arm: one for arm, one in arms.items() if arm != baseline and isfinite(one.features.cka) and one.contrast}
    handles = []
    for number, (one, color) in enumerate(zip(shown.values(), colors(shown), strict=True)):
        contrast, x = one.contrast, 1 - one.features.cka
        assert contrast is not None
        if isfinite(contrast.interval[0]):
            axes.plot([x, x], contrast.interval, color=color, linewidth=1.6, zorder=2)
        marker = "osD^"[number // len(PALETTE) % 4]  # colours repeat
        handles += axes.plot(x, contrast.estimate, marker, color=color, markersize=7, zorder=3)
    legend_above(figure, handles, [*short_names(shown).values()])
    axes.set_xlim(left=0)
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(few_ticks())
    axes.set_xlabel(f"1 - CKA of the prompts' features with those of {baseline}", color=INK)
    axes.set_ylabel("\n".join(wrap(f"{metric}: difference to {baseline}", 40)), color=INK)
    clean_axes(axes)
    return figure


def _score(results: Comparison, arm: str) -> Estimate:
    """Returns the mean score of an arm over its seeds, with a t interval over new seeds."""
    scores = {cell.seed: cell.result.score(results.metric) for cell in results.cells if cell.arm == arm}
    known = {seed: score for seed, score in scores.items() if isfinite(score)}
    return mean_estimate([*known.values()], [*known]) if known else Estimate(nan)


def _correlation(arms: Mapping[str, PromptArm], baseline: str) -> tuple[float, int]:
    """Returns the rank correlation of changes of features with the sizes of changes of the score, and how many arms."""
    pairs = [
        (1 - one.features.cka, abs(one.contrast.estimate))
        for arm, one in arms.items()
        if arm != baseline and one.contrast is not None and isfinite(one.features.cka)
    ]
    if len(pairs) < FEWEST_ARMS or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return nan, len(pairs)
    return float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def _finding(arms: Mapping[str, PromptArm], baseline: str) -> str:
    others = {arm: one for arm, one in arms.items() if arm != baseline}
    alike = {arm: one.features.cka for arm, one in others.items() if isfinite(one.features.cka)}
    tested = {arm: one.contrast for arm, one in others.items() if one.contrast is not None}
    apart = [f"`{arm}` ({each.estimate:+.3f})" for arm, each in tested.items() if each.verdict in ("better", "worse")]
    text = f"No arm has prompts to compare with those of `{baseline}`."
    if alike:
        least = min(alike, key=lambda arm: alike[arm])
        text = f"Features: those of `{least}` are the farthest from those of `{baseline}`, CKA {alike[least]:.4f}."
    judged = [each for each in tested.values() if each.verdict != "not testable"]
    if not judged:
        return f"{text} Answers: with these seeds no difference to `{baseline}` can be tested."
    return (
        f"{text} Answers: the score differs from that of `{baseline}` in {', '.join(apart) or 'none'} of "
        f"{plural(len(judged), 'arm')}."
    )


def _definitions(baseline: str, results: Comparison) -> str:
    return (
        "*Effective rank*: of all sources of the arm side by side. *Beyond depth*: 1 - R^2 of a ridge regression from "
        "the first depth source (davit) to the prompts' features at the same place, on images that it has not seen; "
        f"its interval is over images where the seeds share an encoder, and over seeds otherwise. *CKA to {baseline}*: "
        "linear CKA of the prompts' features. All three are computed without the mean over images at each place. The "
        f"score is {results.metric_title}; differences and verdicts are those of the comparison."
    )


def _table(arms: Mapping[str, PromptArm], baseline: str, metric: str) -> Grid:
    rows = []
    for arm, one in arms.items():
        contrast, found = one.contrast, one.features
        difference = ABSENT
        if contrast is not None:
            difference = f"{signed(contrast.estimate)} ({interval(contrast.interval)})"
        rows.append(
            [
                arm,
                str(len(found.prompts)),
                _with_interval(one.score),
                difference,
                "baseline" if contrast is None else contrast.verdict,
                f"{found.rank:.1f}" if isfinite(found.rank) else ABSENT,
                _with_interval(found.beyond),
                f"{found.cka:.4f}" if isfinite(found.cka) else ABSENT,
            ]
        )
    header = ["arm", "prompts", metric, f"minus {baseline}", "verdict", "effective rank", "beyond depth"]
    return Grid("Answers and features of each arm", [*header, f"CKA to {baseline}"], rows)


def _texts(features: Mapping[str, PromptFeatures]) -> Grid:
    rows = [[arm, name, text] for arm, found in features.items() for name, text in found.prompts.items()]
    return Grid("The prompts", ["arm", "source", "text"], rows)


def _values(arms: Mapping[str, PromptArm], baseline: str, rho: float) -> dict[str, object]:
    return {
        "baseline": baseline,
        "rank_correlation": rho if isfinite(rho) else None,
        "arms": {
            arm: {
                "prompts": dict(one.features.prompts),
                "score": {"mean": one.score.value, "interval": list(one.score.interval)},
                "difference": None if one.contrast is None else one.contrast.estimate,
                "verdict": None if one.contrast is None else one.contrast.verdict,
                "effective_rank": one.features.rank,
                "beyond": {"value": one.features.beyond.value, "interval": list(one.features.beyond.interval)},
                "cka": one.features.cka,
            }
            for arm, one in arms.items()
        },
    }


def _with_interval(found: Estimate) -> str:
    low, high = found.interval
    return f"{format_score(found.value)} ({low:.3f} to {high:.3f})" if isfinite(low) else format_score(found.value)
