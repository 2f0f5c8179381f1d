"""Checks for missing, unknown and misshapen weights, which transformers' from_pretrained only logs."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.weight_files import DTYPES, indexed_names, some_names


def loading_problem(report: Mapping[str, Any], unused: Callable[[str], bool] = lambda name: False) -> str | None:
    """Returns what is wrong with loaded weights, as the end of a sentence; None where checkpoint and model agree.

    transformers itself goes on: with random values for missing weights, and without unknown ones.

    Args:
        report: the loading info of from_pretrained with output_loading_info=True and ignore_mismatched_sizes=True. It
            leaves out tied weights and computed buffers.
        unused: returns whether the checkpoint may hold a name that the model does not have.
    """
    sizes = {
        name: f"{name} {tuple(loaded)} for {tuple(needed)}"
        for name, loaded, needed in sorted(report["mismatched_keys"])
    }
    missing = sorted(set(report["missing_keys"]) - set(sizes))
    unknown = sorted(name for name in report["unexpected_keys"] if not unused(name))
    parts = [f"lacks {len(missing)} of its weights, such as {some_names(missing)}"] if missing else []
    if unknown:
        parts.append(f"holds {len(unknown)} weights without a place in the model, such as {some_names(unknown)}")
    if sizes:
        parts.append(f"has {len(sizes)} weights of other sizes than its configuration, such as "
                     f"{some_names(list(sizes.values()))}")
    return " and ".join(parts) or None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppresses transformers' table of weights, which `loading_problem` replaces.

    It filters records and leaves the logger's level alone, because transformers at level WARNING lists each weight
    without a tensor-parallel plan.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def check_number_types(source: str, revision: str | None, names: Collection[str], where: str) -> None:
    """Raises ConfigError for weights in safetensors files that are not floating point numbers of 16 to 64 bits.

    transformers would read quantised numbers as values, without their scales.

    Args:
        source: hub id or folder.
        names: the model's parameters; other tensors, such as masks, may have other types.
        where: beginning of the message.
    """
    for path in _weight_paths(source, revision):
        with safe_open(path, framework="pt") as tensors:
            types = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 - no mapping
        wrong = sorted(name for name, kind in types.items() if kind not in DTYPES.values() and name in names)
        if wrong:
            raise ConfigError(
                f"{where}: {source} holds numbers of type {types[wrong[0]]}, such as {some_names(wrong)}, expected "
                f"{', '.join(sorted(DTYPES.values()))}"
            )


def _weight_paths(source: str, revision: str | None) -> list[Path]:
    """Returns the safetensors files of a loaded model; none where it has none."""
    found = partial(cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
    index = found(SAFE_WEIGHTS_INDEX_NAME)
    names = indexed_names(Path(index)) if index else [SAFE_WEIGHTS_NAME]
    return [Path(path) for path in map(found, names) if path]
