"""Weights in files of the Hugging Face layouts: read without loading them, written one tensor at a time."""

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
"""Single files in the order they are looked for; each may be an index `<file>.index.json` of several instead."""
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
"""Names of number types in a safetensors header."""
ALIGNMENT = 8
MAX_NAMED_TENSORS = 3
"""Names that an error gives before it only counts."""


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds weights in a layout that `read_weights` knows."""
    return any((folder / name).is_file() for file in LAYOUTS for name in (file, f"{file}.index.json"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """{name: tensor} over a folder's files; the values stay in the files, mapped into memory, until they are used.

    Raises:
        DataError: no weights, a file of the index that is missing, or one that is no safetensors or tensor pickle.
    """
    weights: dict[str, Tensor] = {}
    for file in _files(folder):
        weights |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
    return weights


def indexed_names(index: Path) -> list[str]:
    """The files that an index names, all of them to lie beside it; DataError for an index that is broken."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DataError(f"{index} has no weight_map of names to files")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith((".safetensors", ".bin"))]
    if outside:
        raise DataError(f"{index} names '{outside[0]}', expected a .safetensors or .bin file beside it")
    return names


def write_weights(folder: Path, values: Mapping[str, Tensor], file_bytes: int) -> None:
    """Writes safetensors files of at most `file_bytes` (or one tensor, where it is larger) and, if several, an index.

    Raises:
        DataError: a number type that a model has no use for.
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
    """Every value of `wanted`, a model's state, out of weights {their name: (ours, None without a place; value)}.

    Raises:
        DataError: a name without a place, a value that is not filled, shapes that differ, quantised numbers, or NaN;
            with first names and counts.
    """
    found = {ours: name for name, (ours, _) in renamed.items() if ours is not None}
    unknown = [name for name, (ours, _) in renamed.items() if ours not in wanted]
    missing = [name for name in wanted if name not in found]
    if unknown or missing:
        parts = [f"{len(unknown)} of its keys have no place in the model ({some_names(unknown)})"] if unknown else []
        parts += [f"{len(missing)} values of the model are not in it ({some_names(missing)})"] if missing else []
        raise DataError(f"{where} does not fit its configuration: {'; '.join(parts)}")
    values = {ours: renamed[found[ours]][1] for ours in wanted}
    wrong = [
        f"{found[ours]} {tuple(value.shape)} for {tuple(wanted[ours].shape)}"
        for ours, value in values.items()
        if value.shape != wanted[ours].shape
    ]
    if wrong:
        raise DataError(f"{where} has {len(wrong)} values of other sizes than its configuration ({some_names(wrong)})")
    typed = [
        f"{found[ours]} {value.dtype}"
        for ours, value in values.items()
        if value.dtype != wanted[ours].dtype and value.dtype not in DTYPES
    ]
    if typed:  # quantised numbers mean nothing without their scales
        expected = ", ".join(map(str, DTYPES))
        raise DataError(f"{where} has values of other number types than {expected} ({some_names(typed)})")
    check_finite({found[ours]: value for ours, value in values.items()}, where)
    return values


def check_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raises DataError where a tensor holds NaN or inf, with which every loss and every answer would be nothing.

    Args:
        where: how the sentence begins.
    """
    wrong = [name for name, value in values.items() if value.is_floating_point() and not _finite(value.detach())]
    if wrong:
        raise DataError(
            f"{where} holds NaN or infinite numbers, in {some_names(wrong)}; copy the file again, or take an earlier "
            "one where its training has diverged"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; DataError for any other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} could not be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


def some_names(names: list[str]) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED_TENSORS} more" if len(names) > MAX_NAMED_TENSORS else ""
    return f"{', '.join(names[:MAX_NAMED_TENSORS])}{more}"


def _finite(value: Tensor) -> bool:
    # The extremes are NaN where any value is; isfinite of all would take another tensor's memory.
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
    # Not safetensors' own save_file, which wants every tensor of the file in memory at once.
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
    """Returns twelve hex digits over names, shapes and values; equal exactly where the weights are.

    Values are compared, not the type that holds them: a float32 copy of bfloat16 weights has their hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = _as_float32(tensor.detach().cpu().contiguous())
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _as_float32(values: Tensor) -> Tensor:
    """Returns the same values as float32, and what float32 cannot hold as it is."""
    if not values.is_floating_point():
        return values
    held = values.float()
    # Whatever is shorter than float32 fits into it.
    return values if values.dtype == torch.float64 and not torch.equal(held.double(), values) else held
