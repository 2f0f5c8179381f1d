"""The section of a report on the weights that a fusion gives its sources."""

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from datamodules.storage.sample import spread
from fvl_lightning.attribution.inside.figures import bars_figure, kinds_figure_of_weights, training_figure
from fvl_lightning.attribution.inside.gates import Gates, source_gates, weights_of_questions
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.attribution.views.pictures import Looked, as_picture, attention_figure
from fvl_lightning.evaluation.statistics.resampling import LABEL
from fvl_lightning.reporting.section import PER_SOURCE, PER_SOURCE_MEANS, Section
from fvl_lightning.reporting.sentences import with_range
from fvl_lightning.reporting.tables import Grid, format_score

NAME, TITLE = "gates", "Weights of the sources"
PICTURES = 4
"""Pictures on which weights are drawn."""


def gates_section(opened: OpenedRun) -> Section:
    """Returns the section on the weights of the sources; one sentence for a fusion that does not weigh them."""
    found, fusion = source_gates(opened), opened.built.model.config.fusion["name"]
    if found is None:
        return Section(NAME, TITLE, [f"The fusion {fusion} does not weigh its sources: there are no weights to show."])
    curves = opened.run.source_weights() if opened.run is not None else {}
    return section_of_gates(found, fusion, curves, maps_figure(opened))


def section_of_gates(
    found: Gates,
    fusion: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    maps: Figure | None = None,
) -> Section:
    """Returns the section on weights.

    Args:
        found: the weights over the questions.
        fusion: the name of the fusion.
        curves: {source: [(step, weight)]} over training.
        maps: the figure of weights at each place, if the fusion has them.
    """
    sources = list(found.overall)
    first = max(sources, key=lambda source: found.overall[source].value)
    last = min(sources, key=lambda source: found.overall[source].value)
    spread_of = {s: max(k[s].value for k in found.by_kind.values()) - min(k[s].value for k in found.by_kind.values())
                 for s in sources}  # fmt: skip
    varies = max(spread_of, key=lambda source: spread_of[source])
    most, least = found.overall[first], found.overall[last]
    figures = {f"{NAME}_overall": bars_figure({"weight": found.overall}, "mean weight")}
    captions = {f"{NAME}_overall": f"Mean weight of each source, with 95 % intervals ({LABEL}); dashed: equal weights."}
    if any(len(curve) > 1 for curve in curves.values()):
        figures[f"{NAME}_training"] = training_figure(curves)
        captions[f"{NAME}_training"] = "Weight of each source over training, on the batches of the steps."
    if len(found.by_kind) > 1:
        figures[f"{NAME}_kinds"] = kinds_figure_of_weights(found.by_kind)
        captions[f"{NAME}_kinds"] = "Mean weight of each source by kind of question."
    if maps is not None:
        figures[f"{NAME}_maps"] = maps
        captions[f"{NAME}_maps"] = "Weight of each source at each place of the picture, from 0 (dark) to 1 (bright)."
    rows = [[kind, *(format_score(own[source].value) for source in sources)]
            for kind, own in {"all questions": found.overall, **found.by_kind}.items()]  # fmt: skip
    return Section(
        NAME,
        TITLE,
        [
            f"The fusion {fusion} gives `{first}` the most weight, {with_range(most.value, most.interval)}, and "
            f"`{last}` the least, {with_range(least.value, least.interval)}. Between kinds of question the weight of "
            f"`{varies}` differs most, by {spread_of[varies]:.3f}.",
            "A weight says how a fusion mixes sources, not that answers need them: equal copies share a weight, and a "
            "projection may scale a source up or down. Sections of knocked out and retrained sources show their use.",
        ],
        [Grid("Mean weight by kind of question", ["kind", *sources], rows)],
        figures,
        {
            PER_SOURCE: {source: weight.value for source, weight in found.overall.items()},
            PER_SOURCE_MEANS: "the mean weight in the fusion",
            **dataclasses.asdict(found),
            "training": {source: [list(point) for point in curve] for source, curve in curves.items()},
        },
        captions,
    )


def maps_figure(opened: OpenedRun, pictures: int = PICTURES) -> Figure | None:
    """Draws the weight of each source over some pictures; None for a fusion without weights at each place."""
    samples = [opened.samples[place] for place in spread(len(opened.samples), pictures)]
    asked = [next(question for question in opened.questions if question.index == sample) for sample in samples]
    weights = weights_of_questions(opened, asked)
    if not all(one.maps for one in weights):
        return None
    looked = []
    for sample, question, one in zip(samples, asked, weights, strict=True):
        pixels = opened.data.pixels(opened.split, [sample])[-1]
        conditioned = opened.built.model.conditioned
        text = question.kind if conditioned else ""
        looked.append(Looked(as_picture(pixels, opened.built.model.image_spec), text, one.maps))
    return attention_figure(looked, 1.0)
