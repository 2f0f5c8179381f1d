"""What the cells of a comparison measured, brought together; what could make it unfair is looked for first."""

import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.fairness import check_same_encoder, check_same_samples, check_same_start
from fvl_lightning.comparison.plan import Arms, SeedPlan, arm_differences
from fvl_lightning.comparison.statistics.summary import averaged, conclusions
from fvl_lightning.core.errors import DataError
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import prepare_data
from fvl_lightning.tracking.links import cells_search

SAMPLES = 12
"""Questions on the sheet of sample answers."""

Results = dict[int, dict[str, dict[str, Any]]]
"""{seed: {arm: what its cell measured}}, of the cells that are finished."""


def collect(
    config: ComparisonConfig,
    plans: Mapping[int, SeedPlan],
    encoders: Mapping[int, RunFolder | None],
    cells: Sequence[Cell],
    parent: str | None,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The comparison as it is written to comparison.json, and {arm: its answers with its first seed}.

    Raises:
        DataError: nothing is finished, or the arms of a seed differ in more than they should.
    """
    results: Results = defaultdict(dict)
    for cell in cells:
        if cell.finished:
            results[cell.seed][cell.arm] = cell.result()
    if not results:
        failed = [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure is not None]
        raise DataError(f"no cell is finished{'; ' if failed else ''}{'; '.join(failed)}")
    first_plan = next(iter(plans.values()))
    baseline = config.baseline or next(iter(first_plan.arms))
    differing = arm_differences(first_plan.arms, baseline)
    for seed, by_arm in results.items():
        if config.lineage == "frozen_encoder":
            check_same_encoder(seed, encoders[seed], by_arm)
        for stage in next(iter(by_arm.values()))["runs"]:
            check_same_samples(stage, {arm: RunFolder(Path(r["runs"][stage])) for arm, r in by_arm.items()})
        check_same_start(seed, baseline, by_arm, differing)
    answers = {arm: {seed: r.pop("answers") for seed, by in results.items() if (r := by.get(arm))} for arm in differing}
    for by_arm in results.values():
        for result in by_arm.values():
            del result["initial"], result["cell"]
    present = [arm for arm in differing if answers[arm]]
    level = getattr(first_plan.arms[baseline][-1].data.config, "level", None)
    report = {
        "name": config.name,
        "level": level,
        "seed": config.seeds[0],
        "seeds": config.seeds,
        "lineage": config.lineage,
        "metric": config.metric,
        "mlflow": mlflow_entry(config, parent),
        "encoder": averaged([encoder_entry(run) for run in encoders.values() if run is not None]),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "arms": {arm: averaged([by[arm] for by in results.values() if arm in by]) for arm in present},
        "cells": [{"arm": arm, "seed": seed, **results[seed][arm]} for arm in present for seed in answers[arm]],
        "differences": differing,
        "statistics": conclusions(config.metric, baseline, config.smallest_effect, results, answers),
    }
    return report, {arm: next(iter(answers[arm].values())) for arm in present}


def mlflow_entry(config: ComparisonConfig, parent: str | None) -> dict[str, Any]:
    """Where a report says that its runs are; no run where nothing is tracked."""
    return {
        "run_id": parent,
        "experiment": config.tracking.experiment,
        "folder": str(Path(config.output) / config.name),
        "search": cells_search(parent or ""),
    }


def encoder_entry(run: RunFolder) -> dict[str, Any]:
    """What a report says of a shared encoder."""
    info = run.info
    return {
        "run": str(run.path), "hash": info["encoder_hash"], "scores": info["scores"], "seconds": info["seconds"]
    }  # fmt: skip


def sample_answers(arms: Arms, answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Questions spread over the kinds, each with its image and every arm's answer."""
    store = prepare_data(next(iter(arms.values()))[-1]).store("test")
    first = next(iter(answers.values()))
    kinds = sorted({answer["kind"] for answer in first})
    chosen: list[int] = []
    while len(chosen) < min(SAMPLES, len(first)):
        # One kind after the other, each time a question of an image that is not on the sheet yet.
        kind, used = kinds[len(chosen) % len(kinds)], {first[number]["index"] for number in chosen}
        fitting = [n for n, a in enumerate(first) if a["kind"] == kind and a["index"] not in used]
        chosen.append(fitting[0] if fitting else next(n for n in range(len(first)) if n not in chosen))
    return [
        {
            "image": store.images(first[number]["index"])[0],
            "question": first[number]["question"],
            "truth": first[number]["truth"],
            "answers": {arm: texts[number]["answer"] for arm, texts in answers.items()},
        }
        for number in chosen
    ]


def loss_curves(cells: Sequence[Cell]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{arm: {stage: [(step, training loss averaged over seeds)]}}, of the steps that all its seeds logged."""
    curves: dict[str, dict[str, list[dict[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell.finished:
            for stage, path in cell.result()["runs"].items():
                curves[cell.arm][stage].append(dict(RunFolder(Path(path)).curve("train/loss")))
    return {
        arm: {
            stage: [(step, sum(c[step] for c in of) / len(of)) for step in sorted(set.intersection(*map(set, of)))]
            for stage, of in by_stage.items()
        }
        for arm, by_stage in curves.items()
    }
