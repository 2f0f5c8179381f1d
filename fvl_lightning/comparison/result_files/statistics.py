"""Types of the statistics in comparison.json."""

from dataclasses import dataclass, field
from math import nan
from typing import Literal

from fvl_lightning.comparison.result_files.record import IF_FILLED, Record

Verdict = Literal["better", "worse", "equivalent", "not separated", "not testable"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class ArmSummary(Record):
    """An arm over its seeds. The SD contains what a seed does to every arm alike, and is NaN for a single seed."""

    arm: str
    mean: float
    sd: float
    seeds: int


@dataclass(frozen=True)
class Contrast(Record):
    """Arm minus baseline; see contrasts.Contrasts. One that is "not testable" has only an estimate."""

    arm: str
    estimate: float
    """In the unit of the score, on the seeds that arm and baseline share."""
    verdict: Verdict
    sentence: str
    """The verdict with its numbers, for a report."""
    standard_error: float = nan
    interval: Interval = (nan, nan)
    """This contrast alone, at 1 - alpha."""
    simultaneous: Interval = (nan, nan)
    """All contrasts together, at 1 - alpha (Bonferroni)."""
    p: float = nan
    """Two-sided, unadjusted."""
    p_holm: float = nan
    """Adjusted over all contrasts by Holm's method."""
    p_paired: float = nan
    """Holm over paired t tests, which do not assume equal variances."""
    p_equivalent: float = nan
    """Holm-adjusted p of a difference of at least the smallest effect, in either direction."""
    against: str = field(default="", metadata=IF_FILLED)
    """The arm that is subtracted, where it is not the baseline."""


@dataclass(frozen=True)
class Sensitivity(Record):
    """Differences that these seeds could show, and seeds that would show the smallest effect; see contrasts.py."""

    residual_sd: float
    """SD of a single cell, in the unit of the score."""
    degrees: int
    """Its degrees of freedom."""
    detectable: float
    """True difference of one arm that is found with probability POWER, if the residual SD is the true one."""
    seeds_needed: tuple[int, int]
    """For the smallest effect, from the 1 - alpha interval of the residual SD; never from the observed differences."""


@dataclass(frozen=True)
class ArmComparison(Record):
    """Every arm against the baseline."""

    baseline: str
    smallest_effect: float
    """Smallest difference that matters, in the unit of the score."""
    alpha: float
    """Probability of claiming any difference where there is none."""
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[Contrast, ...]
    tested_seeds: tuple[int, ...]
    """Seeds that all tested arms share; empty where nothing is testable."""
    sensitivity: Sensitivity | None
    """None where nothing is testable."""
    notes: tuple[str, ...]
    """What was left out, and why."""
    pairs: tuple[Contrast, ...] = field(default=(), kw_only=True, metadata=IF_FILLED)
    """Contrasts between the other arms, where all pairs are tested: Holm then adjusts over all of them."""


@dataclass(frozen=True)
class ExploratoryContrast(Record):
    """Arm minus baseline in one group of questions: a hint, which decides nothing."""

    group: str
    """A kind of question, a further split, or a further level."""
    arm: str
    estimate: float
    interval: Interval
    """Not adjusted."""
    p: float
    q: float
    """Benjamini-Hochberg over all contrasts of all groups; about 5 % of those with q up to 0.05 are by chance."""


@dataclass(frozen=True)
class Exploratory(Record):
    """All exploratory contrasts."""

    label: str
    """What a report says of them."""
    contrasts: tuple[ExploratoryContrast, ...]


@dataclass(frozen=True)
class ImageInterval(Record):
    """Arm minus baseline on the images at hand, averaged over seeds, and its percentile interval over new images."""

    estimate: float
    interval: Interval


@dataclass(frozen=True)
class ImageIntervals(Record):
    """Intervals over new images; empty where no arm shares all tested seeds with the baseline."""

    label: str
    """What a report says of them."""
    arms: dict[str, ImageInterval]


@dataclass(frozen=True)
class TaskContrast(Record):
    """One arm minus another on one score of a family. One that is "not testable" has only an estimate."""

    score: str
    """Name of the score, such as tasks/pope/f1."""
    arm: str
    against: str
    """The arm that is subtracted: the baseline, or any other where all pairs are tested."""
    estimate: float
    """In the unit of the score, on the seeds that both arms share."""
    verdict: Verdict = "not testable"
    standard_error: float = nan
    interval: Interval = (nan, nan)
    """This contrast alone, at 1 - alpha."""
    p: float = nan
    """Two-sided, unadjusted."""
    p_adjusted: float = nan
    """Adjusted over all contrasts of all scores of the family."""
    reason: str = field(default="", metadata=IF_FILLED)
    """Why it cannot be tested."""


@dataclass(frozen=True)
class TaskFamily(Record):
    """All scores of tasks but the primary one, tested as one family."""

    correction: str
    """holm: the probability of any false claim is at most alpha; benjamini_hochberg: the expected part of the claims
    that are false is."""
    scores: tuple[str, ...]
    contrasts: tuple[TaskContrast, ...]
    tests: int
    """Contrasts that were tested, over which p is adjusted."""
    notes: tuple[str, ...] = field(default=(), metadata=IF_FILLED)
    """What was left out, and why."""


@dataclass(frozen=True)
class QuestionIntervals(Record):
    """Intervals over new questions of every task, drawn in clusters."""

    label: str
    """What a report says of them."""
    scores: dict[str, dict[str, ImageInterval]]
    """{score: {arm: arm minus baseline}}."""


@dataclass(frozen=True)
class SliceGroup(Record):
    """The questions of a task with one value of a field."""

    value: str
    questions: int
    clusters: int
    scores: dict[str, float]
    """{arm: score, averaged over seeds}."""


@dataclass(frozen=True)
class WorstGap(Record):
    """All questions of a field against the group with the worst score."""

    group: str
    """Empty where fewer than two groups have enough clusters."""
    gap: float
    interval: Interval
    """Over new questions; it accounts for choosing the worst group."""


@dataclass(frozen=True)
class TaskSlices(Record):
    """The arms on a task by the values of one field; see evaluation/robustness/slices.py."""

    task: str
    by: str
    """The field."""
    groups: tuple[SliceGroup, ...]
    worst: dict[str, WorstGap]
    """{arm: its worst gap}."""
    warnings: tuple[str, ...] = field(default=(), metadata=IF_FILLED)


@dataclass(frozen=True)
class TaskStatistics(Record):
    """Statistics of a comparison that is judged on tasks."""

    arms: dict[str, tuple[ArmSummary, ...]]
    """{score: the arms over their seeds}, the primary score among them."""
    family: TaskFamily
    questions: QuestionIntervals
    slices: tuple[TaskSlices, ...] = field(default=(), metadata=IF_FILLED)
    """One for each field of the tasks that name slices."""


@dataclass(frozen=True)
class ComparisonStatistics(ArmComparison):
    """All statistics of a comparison."""

    exploratory: Exploratory
    images: ImageIntervals
    tasks: TaskStatistics | None = field(default=None, metadata=IF_FILLED)
    """None where no tasks are scored."""
