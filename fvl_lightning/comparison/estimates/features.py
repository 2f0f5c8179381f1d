"""The features that a comparison caches: which there are, and the room that they take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.base import BatchData
from fvl_lightning.comparison.estimates.rows import split_counts
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.feature_files import file_type

OF_PIXELS = ("image_fit", "jpeg_decoder", "scaled_decode", "tiles")
"""Fields of the data on which pixels depend, and with them features."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of one set of sources for the images of one data set."""

    stage: Stage
    """A stage on the meta device that reads them."""
    images: int | None
    """None where the data is not there."""
    encoders: int
    """How many encoders compute them: one for each seed, or the one that is pretrained."""

    @property
    def bytes(self) -> int | None:
        """Bytes of all of them in their files; None where the number of images is not known."""
        if self.images is None:
            return None
        specs = self.stage.model.encoder.specs.values()
        size = np.dtype(file_type(self.stage.experiment.feature_cache_dtype)).itemsize
        return size * self.encoders * self.images * sum(spec.tokens * spec.dim for spec in specs)


def feature_sets(
    plans: Sequence[SeedPlan],
    built: Mapping[str, Sequence[Stage]],
    data_of: Callable[[ExperimentConfig], BatchData | None],
) -> list[FeatureSet]:
    """Returns the features that the stages of all seeds and trials read from the cache, each set once.

    Args:
        plans: those of all seeds and trials.
        built: {arm: its stages on the meta device}.
        data_of: returns the data of an experiment; None where it is not there.
    """
    encoders = sum(plan.encoder is not None for plan in plans) or 1
    found: dict[str, FeatureSet] = {}
    for arm, experiments in plans[0].arms.items():
        for experiment, stage in zip(experiments, built[arm], strict=True):
            if experiment.feature_cache is None:
                continue
            data = data_of(experiment)
            pixels = [getattr(experiment.data.config, name) for name in OF_PIXELS]
            where = config_hash(experiment.data) if data is None else data.manifest_hash()
            key = config_hash([experiment.encoder, where, pixels, experiment.feature_cache_dtype])
            if key not in found:
                if data is not None:
                    data.connect(data_context(stage.model, stage.tokenizer, experiment))
                found[key] = FeatureSet(stage, split_counts(data).images, encoders)
    return list(found.values())
