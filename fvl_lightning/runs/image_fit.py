"""Warns where a stage fits images to the encoder otherwise than the run it starts from did."""

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
"""What the data says of how a picture becomes pixels."""


def pictures_of_run(run: RunFolder) -> Mapping[str, Any] | None:
    """The data of a run, which says it; a key of a later version is not in it. None where it had no data."""
    return run.config.get("data")


def pictures_of_model(folder: Path) -> Mapping[str, Any] | None:
    """As the processor beside a model says it; None where there is none of this kit."""
    path = folder / PROCESSOR_FILE
    images = read_json(path).get("image_processor") if path.is_file() else None
    return {**images, "image_fit": images["fit"]} if isinstance(images, Mapping) and "fit" in images else None


def warn_of_other_pictures(experiment: ExperimentConfig, reference: str, before: Mapping[str, Any] | None) -> None:
    """A warning where the data shows pictures otherwise than `reference` saw them; `before` is None where unknown."""
    config = None if experiment.data is None else experiment.data.config
    if config is None or before is None:
        return
    for field in (field for field in dataclasses.fields(config) if field.name in KEYS):
        now, then = getattr(config, field.name), before.get(field.name, field.default)
        if now != then:
            logger.warning(
                "init_from: %s saw its pictures with data.%s %s, and here it is %s, so what was learnt of them meets "
                "other pixels; set data.%s=%s to keep them",
                reference, field.name, _word(then), _word(now), field.name, _word(then),
            )  # fmt: skip


def _word(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
