"""Every format to shards and back: what is read is what the source said, text and image bytes, in order."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.config.loading import check_config

Bytes = Callable[..., bytes]
Expected = list[tuple[dict[str, Any], list[bytes]]]
"""Of each sample the record, or the part of it that the source said, and its images."""

KINDS = ("PNG", "JPEG", "WEBP")
COUNTS = (1, 0, 2, 1, 3, 0, 1)
"""Images of each sample."""


def pictures(image_bytes: Bytes) -> list[list[bytes]]:
    """Images of several formats and shades, none like another."""
    numbers = iter(range(100))
    return [[image_bytes(20 * (n := next(numbers)), (9, 5 + n), KINDS[n % 3]) for _ in range(k)] for k in COUNTS]


def question(i: int) -> str:
    return f"Größe “{i}” \n ☃?"


def messages(i: int, images: int) -> list[dict[str, Any]]:
    asked = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question(i)}]
    return [{"role": "user", "content": asked if images else question(i)}, {"role": "assistant", "content": f"a{i}"}]


def conversation(i: int, images: int) -> list[dict[str, str]]:
    asked = {"from": "human", "value": "<image>" * images + question(i)}
    return [asked, {"from": "gpt", "value": f"a{i}"}]


def as_llava_json(folder: Path, images: list[list[bytes]]) -> tuple[dict[str, Any], Expected]:
    rows = []
    for i, content in enumerate(images):
        names = [f"{i}-{n}.jpg" for n in range(len(content))]  # as data sets do, whatever the format is
        for name, encoded in zip(names, content, strict=True):
            (folder / name).write_bytes(encoded)
        row = {"id": i, "conversations": conversation(i, len(names))}
        rows.append(row | ({"image": names[0] if len(names) == 1 else names} if names else {}))
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    fields = {"name": "llava_json", "file": str(folder / "rows.json"), "images": str(folder)}
    return fields, [({"messages": messages(i, len(c)), "id": i}, c) for i, c in enumerate(images)]


def as_pairs(folder: Path, images: list[list[bytes]]) -> tuple[dict[str, Any], Expected]:
    lines, expected = ["picture\tcaption"], []
    for i, content in enumerate(images):
        for n, encoded in enumerate(content):
            (folder / f"{i}-{n}").write_bytes(encoded)
            lines.append(f"{i}-{n}\tüber {i} ☃ {n}")
            expected.append(({"caption": f"über {i} ☃ {n}"}, [encoded]))
    (folder / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
    return {"name": "pairs", "file": str(folder / "pairs.tsv"), "images": str(folder), "image": "picture"}, expected


def as_parquet(folder: Path, images: list[list[bytes]]) -> tuple[dict[str, Any], Expected]:
    rows = [
        {"images": [{"bytes": encoded, "path": None} for encoded in content], "messages": messages(i, len(content))}
        for i, content in enumerate(images)
    ]
    for row in rows:  # Arrow has one type for a column: parts, also where there is no image
        for message in row["messages"]:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=2)
    fields = {"name": "parquet", "file": str(folder / "*.parquet"), "layout": "messages"}
    return fields, [({"messages": row["messages"]}, content) for row, content in zip(rows, images, strict=True)]


def as_img2dataset(folder: Path, images: list[list[bytes]]) -> tuple[dict[str, Any], Expected]:
    expected = []
    for tar in range(2):
        with tarfile.open(folder / f"{tar:05d}.tar", "w") as archive:
            for i, content in enumerate(images[tar::2]):
                for encoded in content[:1]:
                    about = json.dumps({"caption": f"c{tar}{i} ☃", "url": f"u{i}"}).encode()
                    for suffix, member in (("jpg", encoded), ("txt", b"alt"), ("json", about)):
                        info = tarfile.TarInfo(f"{tar:05d}{i:04d}.{suffix}")
                        info.size = len(member)
                        archive.addfile(info, io.BytesIO(member))
                    expected.append(({"caption": f"c{tar}{i} ☃", "url": f"u{i}"}, [encoded]))
    return {"name": "img2dataset", "file": str(folder / "*.tar")}, expected


@pytest.mark.parametrize("write", [as_llava_json, as_pairs, as_parquet, as_img2dataset])
def test_what_goes_in_comes_out(
    tmp_path: Path, image_bytes: Bytes, write: Callable[[Path, list[list[bytes]]], tuple[dict[str, Any], Expected]]
) -> None:
    (tmp_path / "source").mkdir()
    fields, expected = write(tmp_path / "source", pictures(image_bytes))
    recipe = {"source": fields, "output": str(tmp_path / "shards"), "samples_per_shard": 3, "processes": 1}
    manifest = build_shards(check_config(BuildConfig, recipe))
    assert manifest.refused == {}
    assert (manifest.samples, manifest.images) == (len(expected), sum(len(images) for _, images in expected))
    store = SampleStore.open(tmp_path / "shards", "train")
    assert len(store.shards) == -(-len(expected) // 3)
    assert len(store) == len(expected) >= 5
    for i, (record, images) in enumerate(expected):
        assert store.read(i).images == images
        found = store.record(i)
        assert {name: found[name] for name in record} == record
