"""Reads config.yaml and run.json of a run, which people may edit and a power cut may damage."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.core.jsonl import read_sealed

logger = logging.getLogger(__name__)


STATUSES = ("running", "finished", "interrupted", "failed")
"""Values of a run's `status`; a person may edit it, for instance so that the run is resumed."""


class RunInfo(dict[str, Any]):
    """The content of run.json.

    Raises:
        DataError: a key that it lacks is asked for.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self._path} lacks '{key}'; the run stopped before it was written, or the file was edited")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_parents(value: Any) -> bool:
    """Returns whether this is what `init_from` becomes: for each run or folder its place, id and components."""
    return isinstance(value, list) and all(
        isinstance(parent, dict) and _is_text(parent.get("run")) and isinstance(parent.get("components"), list)
        for parent in value
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(count, dict) and all(map(_is_number, (count.get("parameters"), count.get("trainable"))))
        for count in value.values()
    )


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "status", "stage", "config_hash", "encoder_hash", "mlflow_run_id", "scored"), _is_text),
    "float32_matmul_precision": _is_text,
    "attention": _is_text,
    **dict.fromkeys(("steps", "seconds", "tokens_per_second", "peak_memory_bytes", "adapter_bytes"), _is_number),
    **dict.fromkeys(("parameters", "trainable", "threads"), _is_number),
    **dict.fromkeys(("inputs", "asking"), lambda value: isinstance(value, dict)),
    "init_from": _are_parents,
    "components": _are_counts,
    "scores": _are_scores,
    "files": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
}
"""{key of run.json: check of its value}; null is allowed, too."""


def read_info(path: Path) -> RunInfo:
    """Returns the content of run.json; empty where there is none.

    Raises:
        DataError: it is no JSON object, or a value is of another type.
    """
    try:
        values = read_sealed(path, {"status": STATUSES})
    except FileNotFoundError:
        return RunInfo(path, {})
    except json.JSONDecodeError:
        raise DataError(f"{path} is not valid JSON") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    wrong = [key for key, fits in _FORMS.items() if values.get(key) is not None and not fits(values[key])]
    if wrong:
        raise DataError(f"{path}: '{wrong[0]}' is not what a run writes there, found {str(values[wrong[0]])[:40]!r}")
    return RunInfo(path, values)


def read_run_config(path: Path, wanted_hash: str | None) -> dict[str, Any]:
    """Returns the configuration in config.yaml; a warning says that it is not the one that the run started with.

    Args:
        path: the file.
        wanted_hash: the hash of the configuration that the run started with; None where it is not known.

    Raises:
        DataError: the file is missing, no valid YAML, or holds no keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        raise DataError(f"{path} is missing or no valid YAML") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DataError(f"{path} holds no configuration of a run; copy it from where the run was trained")
    if wanted_hash is not None and config_hash(values) != wanted_hash:
        _say_changed(path, config_hash(values))
    return values


@lru_cache(maxsize=256)
def _say_changed(path: Path, found: str) -> None:
    """Logs once for each content of a file that it was changed."""
    logger.warning("%s was changed since the run was started: this is not the configuration that was trained", path)
