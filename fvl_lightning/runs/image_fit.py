"""Warns if a stage fits images to the encoder in another way than the run it starts from."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.weight_files import read_json
from fvl_lightning.modeling.build import PROCESSOR_FILE
from fvl_lightning.runs.folder import RunFolder

logger = logging.getLogger(__name__)


KEYS = ("image_fit", "scaled_decode")
"""The settings of the data that decide how an image becomes pixels."""


def pictures_of_run(run: RunFolder) -> Mapping[str, Any] | None:
    """Returns the data settings of a run; keys of later versions are missing. None if the run had no data."""
    data = run.config.get("data")
    return data if isinstance(data, Mapping) else None


def pictures_of_model(folder: Path) -> Mapping[str, Any] | None:
    """Returns the settings of the processor in a model folder; None if it has no processor of this kit."""
    path = folder / PROCESSOR_FILE
    images = read_json(path).get("image_processor") if path.is_file() else None
    return {**images, "image_fit": images["fit"]} if isinstance(images, Mapping) and "fit" in images else None


def warn_of_other_pictures(experiment: ExperimentConfig, reference: str, before: Mapping[str, Any] | None) -> None:
    """Logs a warning if images become other pixels than under the settings `before` of `reference`, None if unknown."""
    config = None if experiment.data is None else experiment.data.config
    if config is None or before is None:
        return
    for field in (field for field in dataclasses.fields(config) if field.name in KEYS):
        now, then = getattr(config, field.name), before.get(field.name, field.default)
        if now != then:
            logger.warning(
                "init_from: %s was trained with data.%s %s, and here it is %s, so that the same images become other "
                "pixels; set data.%s=%s to keep them",
                reference, field.name, _word(then), _word(now), field.name, _word(then),
            )  # fmt: skip


def _word(value: Any) -> str:
    """Returns a value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
