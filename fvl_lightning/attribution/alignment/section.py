"""The section of a report on runs of the stage alignment_probe."""

from collections.abc import Mapping, Sequence
from math import isfinite, log

import numpy as np
from numpy.typing import ArrayLike

from fvl_lightning.attribution.alignment.classified import Classified, classify, over_images
from fvl_lightning.attribution.alignment.figures import curves_figure
from fvl_lightning.attribution.alignment.measured import ProbeRun, Progress, check_comparable, measure
from fvl_lightning.comparison.statistics.seed_means import seed_means
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import plural
from fvl_lightning.modeling.contrastive.evaluation import DIRECTIONS
from fvl_lightning.modeling.contrastive.retrieval import CUTOFFS
from fvl_lightning.reporting.section import Section
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score
from fvl_lightning.runs.folder import RunFolder

NAME, TITLE = "alignment", "Alignment of image features with captions"
WAYS = dict(zip(DIRECTIONS, ("image to caption", "caption to image"), strict=True))
MAJORITY = "most frequent answer"
Arms = Mapping[str, Sequence[ProbeRun]]


def alignment_section(
    runs: Sequence[RunFolder],
    accelerator: str | None = None,
    progress: Progress = lambda what, done, total: None,
    classifiers: bool = True,
) -> Section:
    """Returns the section on finished runs; those whose names differ in the seed alone are one arm.

    Each run is measured on its validation split, and each encoder is classified once.

    Args:
        runs: runs of the stage alignment_probe.
        accelerator: None for that of each run's training.
        progress: called as images are encoded.
        classifiers: whether linear probes and nearest neighbours are computed, which encodes images of the split train.

    Raises:
        ConfigError: the runs cannot be compared: N, temperature, validation images or the seeds' settings differ.
        DataError: files of a run are missing or damaged.
    """
    check_comparable(runs)
    measured: list[ProbeRun] = []
    encoders: dict[str, Classified | None] = {}
    for run in runs:
        one, built, data = measure(run, accelerator, progress)
        measured.append(one)
        if classifiers and one.encoder not in encoders:
            encoders[one.encoder] = classify(built.model.encoder, data, progress)
    return section_of(measured, {name: found for name, found in encoders.items() if found is not None})


def section_of(measured: Sequence[ProbeRun], encoders: Mapping[str, Classified]) -> Section:
    """Returns the section of measured runs.

    Args:
        measured: the runs.
        encoders: {hash of an encoder: its classifiers}.

    Raises:
        ConfigError: the runs were measured on different images.
    """
    first = measured[0]
    for one in measured[1:]:
        if one.keys != first.keys:
            raise ConfigError(
                f"data: {first.run.path} and {one.run.path} have different validation images, so that their losses and "
                "ranks do not compare"
            )
    arms: dict[str, list[ProbeRun]] = {}
    for one in measured:
        arms.setdefault(one.arm, []).append(one)
    classified = _classified_by_arm(arms, encoders)
    tables = [_loss_grid(arms), _retrieval_grid(arms), *([_classifier_grid(classified)] if classified else [])]
    figure = f"{NAME}_curves"
    return Section(
        NAME,
        TITLE,
        [_finding(arms), _floor_text(measured), _retrieval_text(first), *([_CLASSIFIERS] if classified else [])],
        tables,
        {figure: curves_figure(arms)},
        {
            "captions": first.found["captions"],
            "temperature": first.temperature,
            "chance": log(first.found["captions"]),
            "arms": {arm: _plain(runs) for arm, runs in arms.items()},
            "classifiers": _plain_classified(classified),
        },
        {figure: "Validation loss over training, a line for each seed, between ln N (chance) and the captions' floor."},
    )


def _finding(arms: Arms) -> str:
    best = min(arms, key=lambda arm: _mean(arms[arm], "loss"))
    first = next(iter(arms.values()))[0]
    n, loss = int(first.found["captions"]), _mean(arms[best], "loss")
    text = (
        f"With N = {n} captions and temperature {first.temperature:g}, chance is ln N = {log(n):.3f} nats. "
        f"**{best}** has the lowest loss, {loss:.3f}"
    )
    if len(arms) == 1:
        return f"{text}: {_percent(arms[best][0].reached)} of the way to the floor."
    others = [
        f"{_mean(runs, 'loss') - loss:.3f} below {arm}{_difference(runs, arms[best])}"
        for arm, runs in arms.items()
        if arm != best
    ]
    return f"{text}: {'; '.join(others)}."


def _difference(other: Sequence[ProbeRun], best: Sequence[ProbeRun]) -> str:
    """Returns the interval of the mean difference over the seeds that both arms have; empty with fewer than two."""
    low, high = ({run.seed: run.found["loss"] for run in runs} for runs in (best, other))
    seeds = sorted(low.keys() & high.keys())
    found = seed_means([high[seed] - low[seed] for seed in seeds]) if len(seeds) > 1 else None
    if found is None or not isfinite(found.interval[0]):
        return ""
    return f" ({found.interval[0]:.3f} to {found.interval[1]:.3f}, 95 % over {len(seeds)} seeds)"


def _floor_text(measured: Sequence[ProbeRun]) -> str:
    floors = [run.found["floor"] for run in measured]
    equal = measured[0].found["floor_of_duplicates"]
    shown = f"{min(floors):.3f}" if max(floors) - min(floors) < 5e-4 else f"{min(floors):.3f} to {max(floors):.3f}"
    text = (
        f"No vectors of images whatever come below the floor of {shown} nats, since captions are alike and "
        f"similarities lie between -1 and 1; equal captions alone leave {equal:.3f}."
    )
    if max(floors) - min(floors) >= 5e-4:
        text += " The floors differ because the language models do, so that losses compare only with their own floor."
    return text


def _retrieval_text(first: ProbeRun) -> str:
    return (
        f"R@k is the share of the {len(first.keys)} images (or captions) of the validation split with the right "
        "caption (image) among the k most similar of all. Equal captions stand for each other, and a tie counts "
        "against. Intervals are 95 %: over new images for these runs, and over seeds by Student's t."
    )


_CLASSIFIERS = (
    "A linear probe (ridge regression on one-hot labels) and the 10 nearest neighbours (cosine) answer, from the mean "
    "over a source's tokens, each question that is asked in the same words about many images. They are fitted on the "
    "training split and scored on the validation split. They say what features hold, not what a model uses."
)


def _loss_grid(arms: Arms) -> Grid:
    rows = [
        [
            arm,
            str(len(runs)),
            _mean_with_seeds([run.found["loss"] for run in runs]),
            f"{_mean(runs, 'floor'):.3f}",
            _percent(float(np.mean([run.reached for run in runs]))),
            _mean_with_seeds([run.found["accuracy"] for run in runs]),
        ]
        for arm, runs in arms.items()
    ]
    header = ["arm", "seeds", "loss (over seeds)", "floor", "of the way to the floor", "own caption first of N"]
    return Grid("Alignment loss at the end of training", header, rows)


def _retrieval_grid(arms: Arms) -> Grid:
    rows = []
    for arm, runs in arms.items():
        for way, title in WAYS.items():
            cells = []
            for k in CUTOFFS:
                name = f"{way}_r{k}"
                hits = [run.hits[name].numpy() for run in runs]
                found = over_images(hits, runs[0].keys)
                seeds = seed_means([hit.mean() for hit in hits])
                cells += [f"{format_score(found.value)} ({_ends(found.interval)})", _ends(seeds.interval)]
            rows.append([arm, title, *cells])
    columns = [text for k in CUTOFFS for text in (f"R@{k} (over images)", "over seeds")]
    return Grid("Cross-modal retrieval", ["arm", "direction", *columns], rows)


def _classified_by_arm(arms: Arms, encoders: Mapping[str, Classified]) -> dict[str, list[Classified]]:
    """Returns {arms with these encoders: the classifiers of each encoder}; arms that share all encoders are one row."""
    by_encoders: dict[tuple[str, ...], list[str]] = {}
    for arm, runs in arms.items():
        hashes = tuple(dict.fromkeys(run.encoder for run in runs))
        if all(encoder in encoders for encoder in hashes):
            by_encoders.setdefault(hashes, []).append(arm)
    return {", ".join(names): [encoders[one] for one in hashes] for hashes, names in by_encoders.items()}


def _classifier_grid(classified: Mapping[str, Sequence[Classified]]) -> Grid:
    rows = []
    for arm, found in classified.items():
        for source, name in found[0].scores:
            scores = [one.scores[source, name] for one in found]
            images = over_images(scores, found[0].samples)
            seeds = seed_means([score.mean() for score in scores])
            row = [arm, source, name, f"{format_score(images.value)} ({_ends(images.interval)})", _ends(seeds.interval)]
            rows.append([*row, str(len(found))])
        guess = over_images([found[0].majority], found[0].samples)
        rows.append([arm, ABSENT, MAJORITY, f"{format_score(guess.value)} ({_ends(guess.interval)})", ABSENT, ABSENT])
    header = ["encoder of", "source", "classifier", "accuracy (over images)", "over encoders", "encoders"]
    one = next(iter(classified.values()))[0]
    note = f"{plural(len(one.samples), 'answer')} about {plural(len(set(one.samples)), 'image')}."
    return Grid("Questions answered from frozen features", header, rows, note)


def _plain(runs: Sequence[ProbeRun]) -> dict[str, object]:
    names = runs[0].found
    return {
        "runs": [str(run.run.path) for run in runs],
        "seeds": [run.seed for run in runs],
        **{name: [_json(run.found[name]) for run in runs] for name in names},
        "reached": [_json(run.reached) for run in runs],
    }


def _plain_classified(classified: Mapping[str, Sequence[Classified]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for arm, found in classified.items():
        kinds = np.array(found[0].kinds)
        values[arm] = {
            MAJORITY: float(found[0].majority.mean()),
            **{
                source: {
                    name: {
                        "accuracy": float(np.mean([one.scores[source, name] for one in found])),
                        "kinds": {
                            str(kind): float(np.mean([one.scores[source, name][kinds == kind] for one in found]))
                            for kind in sorted(set(found[0].kinds))
                        },
                    }
                    for its, name in found[0].scores
                    if its == source
                }
                for source in dict.fromkeys(source for source, _ in found[0].scores)
            },
        }
    return values


def _mean(runs: Sequence[ProbeRun], name: str) -> float:
    return float(np.mean([run.found[name] for run in runs]))


def _mean_with_seeds(values: Sequence[float]) -> str:
    ends = seed_means(values).interval
    return f"{np.mean(values):.3f}" + (f" ({_ends(ends)})" if isfinite(ends[0]) else "")


def _ends(bounds: ArrayLike) -> str:
    low, high = np.asarray(bounds, dtype=np.float64)
    return f"{low:.3f} to {high:.3f}" if isfinite(low) and isfinite(high) else ABSENT


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if isfinite(share) else ABSENT


def _json(value: float) -> float | None:
    return value if isfinite(value) else None
