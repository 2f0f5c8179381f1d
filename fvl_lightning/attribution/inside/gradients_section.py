"""The section of a report on gradients by source."""

import dataclasses
from collections.abc import Mapping

from matplotlib.figure import Figure

from fvl_lightning.attribution.inside.figures import bars_figure
from fvl_lightning.attribution.inside.gradients import SourceGradients, first_rows, source_gradients
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.section import PER_SOURCE, PER_SOURCE_MEANS, Section
from fvl_lightning.reporting.sentences import with_range
from fvl_lightning.reporting.tables import Grid, format_score, interval, signed

NAME, TITLE = "gradients", "Gradients by source"
SPLIT, ROWS = "validation", 128
"""Rows that the loss is computed on, and the split that they come from."""


def gradients_section(opened: OpenedRun, rows: int = ROWS, seed: int = 0) -> Section:
    """Returns the section on gradients by source; one sentence where the data has no rows with images.

    Args:
        opened: the run.
        rows: the number of validation rows, rounded up to whole batches.
        seed: the seed of the bootstrap.
    """
    data = opened.data
    try:
        data.prepare_split(SPLIT)
        batches = list(first_rows(data.val_dataloader(), rows))
    except DataError as error:
        return Section(NAME, TITLE, [f"There are no gradients: {error}."])
    if not batches:
        return Section(NAME, TITLE, [f"There are no gradients: the split {SPLIT} has no rows with images."])
    return section_of_gradients(source_gradients(opened.built.model, batches, opened.precision, seed))


def section_of_gradients(found: SourceGradients) -> Section:
    """Returns the section on the shares of the sources in the gradients."""
    first = max(found.share, key=lambda source: found.share[source].value)
    by_input = max(found.input_share, key=lambda source: found.input_share[source].value)
    top, value = found.input_share[by_input], found.share[first]
    columns: list[tuple[str, Mapping[str, Estimate]]] = [
        ("gradient share", found.share), ("input x gradient", found.input_share)
    ]  # fmt: skip
    rows = [
        [
            source,
            *(text for _, table in columns for text in (format_score(table[source].value), _ends(table[source]))),
            signed(found.first_order[source].value),
            interval(found.first_order[source].interval),
        ]
        for source in found.share
    ]
    header = ["source", "gradient share", "95 %", "input x gradient share", "95 %", "first-order loss", "95 %"]
    figure: Figure = bars_figure(dict(columns), "share")
    return Section(
        NAME,
        TITLE,
        [
            f"`{first}` has the largest share of the gradient, {with_range(value.value, value.interval)}, and "
            f"`{by_input}` that of input times gradient, {with_range(top.value, top.interval)}.",
            f"Shown is the loss on {plural(found.tokens, 'supervised token')} in {plural(found.rows, 'row')} of the "
            f"split {SPLIT}, with respect to the features that the fusion gets. A gradient is the effect of a small "
            "change: a source whose loss has saturated has a small one, however much the answers need it. A gradient "
            "share also depends on the scale of a source, and input times gradient does not. The first-order loss is "
            "how much the loss per token would grow if the source were zero and the loss grew at the same rate all the "
            "way; the 95 % intervals are over new samples.",
        ],
        [Grid("Shares of the sources in the gradient", header, rows)],
        {f"{NAME}_shares": figure},
        {
            PER_SOURCE: {source: share.value for source, share in found.input_share.items()},
            PER_SOURCE_MEANS: "the share of input times gradient",
            **dataclasses.asdict(found),
        },
        {f"{NAME}_shares": "Share of each source in the gradient of the loss, with 95 % intervals over new samples."},
    )


def _ends(found: Estimate) -> str:
    low, high = (format_score(end) for end in found.interval)
    return f"{low} to {high}"
