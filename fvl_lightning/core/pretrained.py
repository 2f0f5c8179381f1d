"""Opens what transformers and peft have saved: without code of the folder, within limits, with errors in a sentence.

A folder of a model comes from a stranger, or from a disk that has damaged it. transformers runs code that such a folder
names, once a `y` is typed; it takes a file for what it should be, and fails in as many ways as there are classes. It
only logs which weights are missing, unknown or misshapen.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from fvl_lightning.core.errors import ConfigError, DataError, UserError, first_line
from fvl_lightning.core.weight_files import DTYPES, indexed_names, read_json, some_names

JSON_FILES = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "adapter_config.json",
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
)  # fmt: skip
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MAX_ADDED_TOKENS = 50_000
"""transformers takes time that grows with them; the tokenizers of Florence-2 and Gemma 3 have 1,000 and 6,400."""
MAX_FILE_BYTES = 2**28
"""The largest of these files; tokenizers of 256,000 tokens have 35 MB."""


def open_saved(
    kind: Any, source: str | Path, where: str, error: type[UserError] = ConfigError, **options: Any
) -> Any:
    """Returns `kind.from_pretrained(source)`, a tokenizer, a configuration, a processor or a model.

    Code of the folder or hub repository is neither run nor asked about.

    Args:
        kind: a class of transformers or peft.
        source: a folder or hub id.
        where: the beginning of the message.
        error: the class of the error.
        options: more keyword arguments of from_pretrained.

    Raises:
        UserError: of the class `error`: it cannot be read.
    """
    try:
        check_model_files(Path(source))
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except UserError:
        raise
    except Exception as problem:  # each class raises errors of its own
        raise error(f"{where}: {source} could not be read: {_reason(problem)}") from None
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":  # of a library in Rust, which is no Exception
            raise
        raise error(f"{where}: {source} could not be read: {_reason(problem)}") from None


def check_model_files(folder: Path) -> None:
    """Checks the small files of a folder of a model or tokenizer, as far as they are there.

    Raises:
        DataError: a file that is no JSON object or is too large, an index that names a file outside of the folder, too
            many added tokens, or a part that this kit does not load.
    """
    if not folder.is_dir():
        return
    for name in INDEXES:
        if (folder / name).exists():
            indexed_names(folder / name)
    contents = {name: _read(folder / name) for name in JSON_FILES if (folder / name).exists()}
    added = contents.get("tokenizer.json", {}).get("added_tokens") or []
    decoder = contents.get("tokenizer_config.json", {}).get("added_tokens_decoder") or {}
    for name, tokens in (
        ("tokenizer.json", added),
        ("tokenizer_config.json", decoder),
        ("added_tokens.json", contents.get("added_tokens.json", {})),
    ):
        if not isinstance(tokens, list | dict) or len(tokens) > MAX_ADDED_TOKENS:
            found = f"{len(tokens):,}" if isinstance(tokens, list | dict) else "no list"
            raise DataError(f"{folder / name}: expected at most {MAX_ADDED_TOKENS:,} added tokens, found {found}")
    # transformers would load the model that it names, with whatever code comes with that.
    named = "audio_tokenizer" in contents.get("processor_config.json", {})
    if named or (folder / "audio_tokenizer_config.json").exists():
        raise DataError(f"{folder} names an audio tokenizer, and the models of this kit have none")


def _read(path: Path) -> dict[str, Any]:
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    return read_json(path)


def _reason(error: BaseException) -> str:
    line = first_line(error)
    known = isinstance(error, OSError | ValueError | RuntimeError) and not isinstance(error, json.JSONDecodeError)
    return line if known or type(error).__name__ in line else f"{type(error).__name__}: {line}"


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
