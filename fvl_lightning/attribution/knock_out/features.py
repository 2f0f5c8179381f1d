"""The images of an opened run with some of their sources replaced, from features that were computed once."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.core.device import autocast
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.answers import other_samples
from fvl_lightning.evaluation.batched_answers import ImageSources
from fvl_lightning.modeling.connector.alignment import AlignedSources
from fvl_lightning.modeling.connector.replacement import (
    NOISE_DRAWS,
    Replacement,
    SourceMoments,
    replace_sources,
    zeros,
)

SAMPLES_AT_ONCE = 64
"""Samples whose features are aligned together, for the moments."""


class ReplacedFeatures:
    """Gives the images of an opened run the true features of some sources, and substitutes for the others.

    Mean and noise have the moments of the images that are asked about. With `shuffled`, all replaced sources of an
    image come from the same other one.

    Args:
        opened: the run.
        how: the kind of substitute.
        seed: the seed of noise.

    Raises:
        DataError: features are to be shuffled, but there is one image.
    """

    def __init__(self, opened: OpenedRun, how: Replacement, seed: int = 0) -> None:
        if how == "shuffled" and len(opened.samples) < 2:
            raise DataError(f"split {opened.split}: features of other images are asked for, but there is one image")
        self._opened, self._how, self._seed = opened, how, seed
        self._other = other_samples(opened.samples)

    def keeping(self, kept: Collection[str]) -> ImageSources:
        """Returns a function: numbers of samples -> features of their images, with only `kept` as they are."""
        model = self._opened.built.model
        mask = torch.tensor([name in kept for name in model.alignment.sources])

        def read(samples: Sequence[int]) -> AlignedSources:
            aligned = model.alignment(self._opened.sources_of(samples))
            return aligned if bool(mask.all()) else replace_sources(aligned, self._substitutes(aligned, samples), mask)

        return read

    def _substitutes(self, aligned: AlignedSources, samples: Sequence[int]) -> Mapping[str, Tensor]:
        if self._how == "zero":
            return zeros(aligned)
        if self._how == "mean":
            return self._moments.mean
        rows = self._opened.rows
        if self._how == "noise":
            turns = torch.tensor([row % NOISE_DRAWS for sample in samples for row in rows[sample]])
            return {name: draws[turns] for name, draws in self._noise.items()}
        # An image in more tiles than the other one gets the tiles of the other one in turn.
        others = [
            rows[self._other[sample]][tile % len(rows[self._other[sample]])]
            for sample in samples
            for tile in range(len(rows[sample]))
        ]
        model = self._opened.built.model
        shown = {name: source[others].to(model.device) for name, source in self._opened.features.items()}
        return model.alignment(shown)

    @cached_property
    def _moments(self) -> SourceMoments:
        opened, model = self._opened, self._opened.built.model

        def batches() -> Iterator[AlignedSources]:
            for start in range(0, len(opened.samples), SAMPLES_AT_ONCE):
                yield model.alignment(opened.sources_of(opened.samples[start : start + SAMPLES_AT_ONCE]))

        with torch.no_grad(), autocast(model.device, opened.precision):
            return SourceMoments.of(batches())

    @cached_property
    def _noise(self) -> dict[str, Tensor]:
        return self._moments.noise(self._seed)
