"""The section "views": pictures and numbers of the features of a run's sources, its fusion and its image tokens."""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

import torch

from datamodules.storage.sample import spread
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.attribution.views.colours import SHOWN, colour_maps
from fvl_lightning.attribution.views.numbers import FeatureNumbers, feature_numbers
from fvl_lightning.attribution.views.pictures import as_picture, colour_maps_figure, similarity_figure
from fvl_lightning.core.terminal import plural
from fvl_lightning.core.types import NO_TOKEN, FeatureSpec
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.feature_analysis.images import MAX_NUMBERS, SAMPLES, ImageFeatures
from fvl_lightning.reporting.section import PER_SOURCE, PER_SOURCE_MEANS, Section
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score

FUSED, TOKENS = "fusion output", "image tokens"
"""Names of what the fusion returns, and of what the language model gets, beside those of the sources."""
AT_ONCE = 64
"""Images that go through the fusion at once."""
MEANS = "share of its variance that {base} does not explain"


def viewed_images(opened: OpenedRun, images: int = SAMPLES) -> ImageFeatures:
    """Returns the features of at most so many of the opened run's images, spread evenly, and no more than fit."""
    model = opened.built.model
    specs = dict(model.encoder.specs) | {FUSED: model.fusion.output, TOKENS: model.projector.image_tokens()}
    most = max(1, MAX_NUMBERS // sum(spec.tokens * spec.dim for spec in specs.values()))
    kept = [opened.samples[place] for place in spread(len(opened.samples), images)]
    if (tiles := sum(len(opened.rows[sample]) for sample in kept)) > most:
        kept = [kept[place] for place in spread(len(kept), max(1, most * len(kept) // tiles))]
    rows = [row for sample in kept for row in opened.rows[sample]]
    places = [(sample, tile) for sample in kept for tile in range(len(opened.rows[sample]))]
    return ImageFeatures(
        {name: x[rows].float() for name, x in opened.features.items()},
        dict(model.encoder.specs),
        opened.split,
        tuple(sample for sample, _ in places),
        tuple(tile for _, tile in places),
    )


@torch.no_grad()
def with_fused(opened: OpenedRun, features: ImageFeatures) -> ImageFeatures:
    """Adds what the fusion makes of the sources, and the image tokens, as two sources more.

    A fusion that reads a question gets none.
    """
    model, fused, tokens = opened.built.model, [], []
    kept = model.fusion.register_forward_hook(lambda _, inputs, output: fused.append(output.features.float().cpu()))
    like = next(model.projector.parameters())
    try:
        for start in range(0, len(features), AT_ONCE):
            part = {
                name: x[start : start + AT_ONCE].to(like.device, like.dtype) for name, x in features.sources.items()
            }
            images = len(next(iter(part.values())))
            asked = torch.full((images, 1), NO_TOKEN, device=like.device) if model.conditioned else None
            tokens.append(model.embed_images(sources=part, question_ids=asked).features.float().cpu())
    finally:
        kept.remove()
    specs = {FUSED: model.fusion.output, TOKENS: model.projector.image_tokens()}
    added = {FUSED: torch.cat(fused), TOKENS: torch.cat(tokens)}
    return replace(features, sources={**features.sources, **added}, specs={**features.specs, **specs})


def views_section(opened: OpenedRun) -> Section:
    """Returns pictures of the features in one basis, their similarity and rank, and what davit does not explain."""
    features = with_fused(opened, viewed_images(opened))
    title, numbers = "Views of the features", feature_numbers(features)
    if numbers is None:
        return Section("views", title, ["No source is a map of the image, so that there are no places to compare."])
    figures = {"views_similarity": similarity_figure([*numbers.ranks], numbers.similarity)}
    captions = {
        "views_similarity": "Linear CKA between features at the same places of the same images, after the mean over "
        "the images at each place is subtracted: 1 for the same up to rotation and scale."
    }
    maps, captions["views_pca"] = colour_maps(features, alone=(FUSED, TOKENS))
    shown = [features.pixels(opened.data, image) for image in spread(len(features), SHOWN)]
    pictures = [as_picture(pixels, opened.built.model.image_spec) for pixels in shown]
    figures = {"views_pca": colour_maps_figure(pictures, maps)} | figures
    grouped = {name: found for name, found in numbers.beyond.items() if name in opened.features}
    values = {
        "images": len(features),
        "rows": numbers.rows,
        "base": numbers.base,
        "effective_rank": numbers.ranks,
        "share_of_place": numbers.place_shares,
        "beyond": {name: {"value": e.value, "interval": list(e.interval)} for name, e in numbers.beyond.items()},
        "cka": {
            name: dict(zip(numbers.ranks, row, strict=True))
            for name, row in zip(numbers.ranks, numbers.similarity.tolist(), strict=True)
        },
    }
    if grouped:
        values |= {PER_SOURCE: {numbers.base: 0.0} | {name: found.value for name, found in grouped.items()}}
        values |= {PER_SOURCE_MEANS: MEANS.format(base=numbers.base)}
    paragraphs = [finding(numbers, [*opened.features]), *how_computed(numbers, features)]
    return Section("views", title, paragraphs, [_table(numbers, features.specs)], figures, values, captions)


def finding(numbers: FeatureNumbers, sources: list[str]) -> str:
    """Returns what is new in each source, and how alike the others are, as a sentence."""
    beyond = {name: found for name, found in numbers.beyond.items() if name in sources}
    if not beyond:
        return f"`{numbers.base}` has an effective rank of {numbers.ranks[numbers.base]:.1f}; no other source is a map."
    parts = [f"`{name}` {_percent(found)}" for name, found in beyond.items()]
    text = f"Not explained by `{numbers.base}` at the same place: {', '.join(parts)} of the variance between images."
    names = [*numbers.ranks]
    pairs = {(a, b): float(numbers.similarity[names.index(a), names.index(b)])
             for a in beyond for b in beyond if names.index(a) < names.index(b)}  # fmt: skip
    pairs = {pair: value for pair, value in pairs.items() if isfinite(value)}
    if pairs:
        least = min(pairs, key=lambda pair: pairs[pair])
        text += (
            f" Among these sources `{least[0]}` and `{least[1]}` differ most: their linear CKA is {pairs[least]:.2f}."
        )
    return text


def how_computed(numbers: FeatureNumbers, features: ImageFeatures) -> list[str]:
    """Returns the definitions of the numbers, and from what they are computed."""
    widest = max(spec.dim for spec in features.specs.values())
    few = f" With {numbers.rows:,} rows and up to {widest:,} channels, CKA and ranks are bounded by the rows."
    return [
        f"Computed from {plural(len(features), 'image')} of the split {features.split}: {numbers.rows:,} rows, each a "
        f"place of an image.{few if numbers.rows < 4 * widest else ''} *Effective rank* is exp of the entropy of the "
        "normalised singular values (Roy and Vetterli 2007) of the features without the mean over the images at each "
        "place. *Same at a place* is the share of the variance that this mean has.",
        f"*Beyond {numbers.base}* is 1 - R^2 of a ridge regression from `{numbers.base}` at the same place, one matrix "
        "for all places, on images that it has not seen (five folds); the interval is over images. The share may also "
        f"be in `{numbers.base}` at other places, or in a form that is not linear.",
    ]


def _table(numbers: FeatureNumbers, specs: Mapping[str, FeatureSpec]) -> Grid:
    rows = []
    for name in numbers.ranks:
        spec, found = specs[name], numbers.beyond.get(name)
        low, high = found.interval if found else (float("nan"),) * 2
        beyond = ABSENT if found is None else format_score(found.value)
        interval = f"{low:.3f} to {high:.3f}" if isfinite(low) else ABSENT
        assert spec.grid is not None
        grid, rank = f"{spec.grid[0]} x {spec.grid[1]}", numbers.ranks[name]
        shown = f"{rank:.1f}" if isfinite(rank) else ABSENT
        rows.append([name, grid, str(spec.dim), shown, format_score(numbers.place_shares[name]), beyond, interval])
    header = ["source", "places", "channels", "effective rank", "same at a place", f"beyond {numbers.base}", "95 %"]
    return Grid("Features in numbers", header, rows)


def _percent(found: Estimate) -> str:
    low, high = found.interval
    return f"{found.value:.1%} ({low:.1%} to {high:.1%})" if isfinite(low) else f"{found.value:.1%}"
