"""Checks of what transformers' from_pretrained loaded: missing, unknown and misshapen weights, which it only logs."""

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
    """What is wrong with weights that were loaded, as the end of a sentence; None where every value has its place.

    transformers would go on: with random values for what is missing, without what it has no place for.

    Args:
        report: from_pretrained's, with output_loading_info=True and ignore_mismatched_sizes=True. Tied values and
            buffers that are computed are not in it.
        unused: the names that may be in the checkpoint without a place in the model.
    """
    sizes = {
        name: f"{name} {tuple(theirs)} for {tuple(ours)}" for name, theirs, ours in sorted(report["mismatched_keys"])
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
    """Without transformers' table of weights, which `loading_problem` says in a sentence.

    A filter and not a level: from level WARNING on, transformers lists each weight that no tensor-parallel plan names.
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
    """Raises ConfigError for weights in safetensors files that are no floating point numbers of 16 to 64 bits.

    transformers reads quantised numbers without their scales as if they were the values.

    Args:
        source: hub id or folder.
        names: the model's parameters; other tensors, such as masks, may hold other numbers.
        where: how the sentence begins.
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
    """The safetensors files of a model that has been loaded; none where it has none."""
    found = partial(cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
    index = found(SAFE_WEIGHTS_INDEX_NAME)
    names = indexed_names(Path(index)) if index else [SAFE_WEIGHTS_NAME]
    return [Path(path) for path in map(found, names) if path]
