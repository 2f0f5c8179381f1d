"""Reads weight files of the Hugging Face layouts without loading them, and writes them one tensor at a time."""

import hashlib
import json
import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fvl_lightning.core.atomic import atomic_write, write_text_atomically
from fvl_lightning.core.errors import DataError, first_line

LAYOUTS = ("model.safetensors", "pytorch_model.bin")
"""File names in the order of lookup; an index `<file>.index.json` may list several files instead."""
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
"""Names of floating point types in a safetensors header."""
ALIGNMENT = 8
MAX_NAMED_TENSORS = 3
"""An error lists at most this many names, and counts the rest."""


def has_weights(folder: Path) -> bool:
    """Returns whether `folder` holds weights in a layout that `read_weights` reads."""
    return any((folder / name).is_file() for file in LAYOUTS for name in (file, f"{file}.index.json"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns {name: tensor} over a folder's files; the values are memory-mapped and read when they are used.

    Raises:
        DataError: no weights, a missing file of the index, or a file that is no safetensors file or tensor pickle.
    """
    weights: dict[str, Tensor] = {}
    for file in _files(folder):
        weights |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
    return weights


def indexed_names(index: Path) -> list[str]:
    """Returns the names of an index's files, which must lie next to it; DataError for a broken index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DataError(f"{index} has no weight_map of names to files")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith((".safetensors", ".bin"))]
    if outside:
        raise DataError(f"{index} names '{outside[0]}', expected a .safetensors or .bin file next to it")
    return names


def write_weights(folder: Path, values: Mapping[str, Tensor], file_bytes: int) -> None:
    """Writes safetensors files of at most `file_bytes` (or one larger tensor) and, for several files, an index.

    Raises:
        DataError: a tensor that does not hold floating point numbers.
    """
    for name, value in values.items():
        if value.dtype not in DTYPES:
            raise DataError(f"{name} holds numbers of type {value.dtype}, expected {', '.join(map(str, DTYPES))}")
    shards: list[list[str]] = [[]]
    filled = 0
    for name, value in values.items():
        if shards[-1] and filled + value.nbytes > file_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += value.nbytes
    if len(shards) == 1:
        _write_file(folder / LAYOUTS[0], shards[0], values)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, names, values)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(value.nbytes for value in values.values())}, "weight_map": weight_map}
    write_text_atomically(folder / f"{LAYOUTS[0]}.index.json", json.dumps(index, indent=2))


def match_weights(
    renamed: Mapping[str, tuple[str | None, Tensor]], wanted: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Returns a value for every name in `wanted`, a model's state dict.

    Args:
        renamed: {name in the file: (name in the model or None, value)}.
        wanted: the model's state dict, for its names, shapes and types.
        where: beginning of the message.

    Raises:
        DataError: a name that the model does not have, a missing value, another shape, quantised numbers, or NaN;
            with the first names and counts.
    """
    file_names = {target: name for name, (target, _) in renamed.items() if target is not None}
    unknown = [name for name, (target, _) in renamed.items() if target not in wanted]
    missing = [name for name in wanted if name not in file_names]
    if unknown or missing:
        parts = [f"{len(unknown)} of its keys have no place in the model ({some_names(unknown)})"] if unknown else []
        parts += [f"{len(missing)} values of the model are not in it ({some_names(missing)})"] if missing else []
        raise DataError(f"{where} does not fit its configuration: {'; '.join(parts)}")
    values = {target: renamed[file_names[target]][1] for target in wanted}
    wrong = [
        f"{file_names[target]} {tuple(value.shape)} for {tuple(wanted[target].shape)}"
        for target, value in values.items()
        if value.shape != wanted[target].shape
    ]
    if wrong:
        raise DataError(f"{where} has {len(wrong)} values of other sizes than its configuration ({some_names(wrong)})")
    typed = [
        f"{file_names[target]} {value.dtype}"
        for target, value in values.items()
        if value.dtype != wanted[target].dtype and value.dtype not in DTYPES
    ]
    if typed:  # quantised numbers mean nothing without their scales
        expected = ", ".join(map(str, DTYPES))
        raise DataError(f"{where} has values of other number types than {expected} ({some_names(typed)})")
    check_finite({file_names[target]: value for target, value in values.items()}, where)
    return values


def check_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raises DataError where a tensor holds NaN or inf, which would make every loss and every answer useless.

    Args:
        where: beginning of the message.
    """
    wrong = [name for name, value in values.items() if value.is_floating_point() and not _finite(value.detach())]
    if wrong:
        raise DataError(
            f"{where} holds NaN or infinite numbers, in {some_names(wrong)}; copy the file again or, if its "
            "training diverged, use an earlier one"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object; DataError for any other file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} could not be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


def some_names(names: list[str]) -> str:
    """Returns the first names, and the number of the others."""
    more = f" and {len(names) - MAX_NAMED_TENSORS} more" if len(names) > MAX_NAMED_TENSORS else ""
    return f"{', '.join(names[:MAX_NAMED_TENSORS])}{more}"


def _finite(value: Tensor) -> bool:
    # aminmax returns NaN where any value is NaN; isfinite would allocate another tensor of this size.
    return value.is_meta or value.numel() == 0 or bool(torch.stack(value.aminmax()).isfinite().all())


def _files(folder: Path) -> list[Path]:
    for file in LAYOUTS:
        index = folder / f"{file}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / file).is_file():
            return [folder / file]
    raise DataError(f"{folder} holds no weights, expected {' or '.join(LAYOUTS)}, or an index of several such files")


def _indexed(index: Path) -> list[Path]:
    names = indexed_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        lacking = f"{len(missing)} of the {len(names)} files of its index, first {missing[0]}"
        raise DataError(f"{index.parent} lacks {lacking}")
    return [index.parent / name for name in names]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not a readable safetensors file: {first_line(error)}") from None


def _read_bin(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable file of tensors: {first_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{file} holds other things than names and tensors")
    return content


def _write_file(path: Path, names: Iterable[str], values: Mapping[str, Tensor]) -> None:
    # safetensors' own save_file needs all tensors of the file in memory at once.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        value, begin = values[name], end
        end += value.nbytes
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with atomic_write(path) as tmp_path, tmp_path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(values[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Returns twelve hex digits over names, shapes and values; equal exactly for equal weights.

    It hashes values, not their type: a float32 copy of bfloat16 weights has the same hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = _as_float32(tensor.detach().cpu().contiguous())
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _as_float32(values: Tensor) -> Tensor:
    """Returns the values as float32, or unchanged where float32 cannot represent them."""
    if not values.is_floating_point():
        return values
    converted = values.float()
    # Every shorter type fits into float32.
    return values if values.dtype == torch.float64 and not torch.equal(converted.double(), values) else converted
