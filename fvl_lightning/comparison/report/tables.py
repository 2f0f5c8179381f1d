"""The part of a comparison's report that says how sure its differences are, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

ABSENT = "-"


@dataclass(frozen=True)
class Grid:
    """A table of ready-made texts: a title, the first column's name and the others', rows as wide as the header, and
    what stands between title and table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def statistics_grids(comparison: Mapping[str, Any]) -> list[Grid]:
    """Arms over seeds, contrasts to the baseline, the interval over images, and hints by kind; none for one seed."""
    statistics = comparison["statistics"]
    if len(comparison["seeds"]) == 1:
        return []
    arms = [
        [arm["arm"], _number(arm["mean"]), _number(arm["sd"]), str(arm["seeds"])] for arm in statistics["arms"]
    ]
    grids = [
        Grid(f"{metric_words(comparison['metric'])}, over seeds", ARM_HEADER, arms),
        Grid(f"Difference to {statistics['baseline']}", CONTRAST_HEADER, list(map(_contrast, statistics["contrasts"]))),
    ]
    if images := statistics["images"]["arms"]:
        rows = [[arm, signed(entry["estimate"]), interval(entry["interval"])] for arm, entry in images.items()]
        note = (
            f"{statistics['images']['label'].capitalize()}: what drawing other test images would change, and not what "
            "training again would."
        )
        grids.append(Grid(f"Difference to {statistics['baseline']} over images", IMAGE_HEADER, rows, note))
    if statistics["exploratory"]["contrasts"]:
        grids.append(_exploratory(statistics))
    return grids


ARM_HEADER = ["arm", "mean", "SD over seeds", "seeds"]
CONTRAST_HEADER = ["arm", "difference", "95 % interval", "p (Holm)", "verdict"]
IMAGE_HEADER = ["arm", "difference", "95 % interval"]


def verdict_section(comparison: Mapping[str, Any]) -> str:
    """What the seeds show, in words; for one seed that they show nothing."""
    statistics = comparison["statistics"]
    if len(comparison["seeds"]) == 1:
        return (
            "> **One seed ranks nothing.** Every arm was trained once, so a difference between two arms may be chance. "
            "The arms stand in the order in which they were configured, and no winner is named."
        )
    lines = [f"> - {contrast['sentence']}" for contrast in statistics["contrasts"]]
    lines += [f"> - {note}" for note in statistics["notes"]]
    head = (
        f"> **What {len(comparison['seeds'])} seeds show** ({metric_words(comparison['metric'])}, against "
        f"{statistics['baseline']}; a difference below {statistics['smallest_effect']:g} does not matter):\n>\n"
    )
    return "\n\n".join([head + "\n".join(lines), sensitivity_words(statistics)])


def sensitivity_words(statistics: Mapping[str, Any]) -> str:
    """What these seeds could have shown, and how many would show the smallest effect."""
    found = statistics["sensitivity"]
    if found is None:
        return "Nothing is testable with these seeds, so there is no saying what they could have shown."
    low, high = found["seeds_needed"]
    many = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"The residual SD of a cell, what is left of it beside its arm and its seed, is {found['residual_sd']:.3g} "
        f"({found['degrees']} degrees of freedom). With {len(statistics['tested_seeds'])} seeds a true difference of "
        f"{found['detectable']:.3g} is found with a probability of 80 %; to find {statistics['smallest_effect']:g} it "
        f"takes {many} seeds (from the 95 % interval of that SD, never from the differences observed)."
    )


def differences_grid(comparison: Mapping[str, Any]) -> Grid:
    """What the configurations of the arms do not share, the baseline's own value first."""
    differing, baseline = comparison["differences"], comparison["statistics"]["baseline"]
    others = [arm for arm in differing if arm != baseline]
    keys = dict.fromkeys(key for arm in others for key in differing[arm])
    rows = []
    for key in keys:
        theirs = next(differing[arm][key][0] for arm in others if key in differing[arm])
        ours = (differing[arm].get(key, [None, theirs])[1] for arm in others)
        rows.append([key, *(_value(value) for value in (theirs, *ours))])
    same = {arm: entry.get("same_start") for arm, entry in comparison["arms"].items()}
    shares = [ABSENT if same.get(arm) is None else f"{same[arm]:.1%}" for arm in (baseline, *others)]
    rows.append([f"weights that start as {baseline}'s", *shares])
    return Grid("What differs", ["key", baseline, *others], rows)


def price_grid(arms: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Size, operations, speed and time of every arm."""
    entries = arms.values()
    rows = [
        ["parameters", *(f"{entry['parameters']:,.0f}" for entry in entries)],
        ["trainable in the last stage", *(f"{entry['trainable']:,.0f}" for entry in entries)],
        ["image tokens in the language model", *(f"{entry['image_tokens']:,.0f}" for entry in entries)],
        ["training, MFLOPs per sample", *(f"{entry['training_flops'] / 1e6:,.1f}" for entry in entries)],
        ["inference, MFLOPs per question", *(f"{entry['inference_flops'] / 1e6:,.1f}" for entry in entries)],
        ["tokens per second", *(f"{entry['tokens_per_second']:,.0f}" for entry in entries)],
        ["peak memory (MiB)", *(f"{entry['peak_memory_bytes'] / 2**20:,.0f}" for entry in entries)],
        ["training time, all stages (s)", *(f"{entry['seconds']:,.0f}" for entry in entries)],
    ]
    note = (
        "Operations are counted on the real model with real data: training on a batch of the last stage, forwards and "
        "backwards, the encoder's forward included; inference on an image and a question, up to the first token of the "
        "answer."
    )
    return Grid("Price", ["", *arms], rows, note)


def metric_words(metric: str) -> str:
    """accuracy/macro as a reader knows it."""
    return {"accuracy/macro": "Accuracy, macro average over kinds", "accuracy/overall": "Accuracy over all questions"}[
        metric
    ]


def signed(value: float) -> str:
    """A difference, its sign always there."""
    return f"{value:+.3f}" if isfinite(value) else ABSENT


def interval(bounds: Sequence[float]) -> str:
    """Both ends of an interval."""
    return f"{signed(bounds[0])} to {signed(bounds[1])}" if all(map(isfinite, bounds)) else ABSENT


def _contrast(contrast: Mapping[str, Any]) -> list[str]:
    p = contrast["p_holm"]
    shown = f"{p:.2g}" if isfinite(p) else ABSENT
    return [
        contrast["arm"], signed(contrast["estimate"]), interval(contrast["interval"]), shown, contrast["verdict"]
    ]  # fmt: skip


def _exploratory(statistics: Mapping[str, Any]) -> Grid:
    hints = statistics["exploratory"]
    found = {(hint["group"], hint["arm"]): hint for hint in hints["contrasts"]}
    groups, arms = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    rows = [
        [group, *(f"{signed(hint['estimate'])} (q {hint['q']:.2g})" if (hint := found.get((group, arm))) else ABSENT
                  for arm in arms)]
        for group in groups
    ]  # fmt: skip
    note = f"{hints['label'][0].upper()}{hints['label'][1:]}."
    return Grid(f"Difference to {statistics['baseline']} by kind", ["kind", *arms], rows, note)


def _number(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else ABSENT


def _value(value: Any) -> str:
    if value is None:
        return ABSENT
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
