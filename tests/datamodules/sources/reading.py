"""Helpers of the tests of sources: they write files, and read a source as the builder does."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datamodules.sources.base import Ignored, Refusal, Row, Source
from fvl_lightning.core.config.loading import choose

PNG = b"\x89PNG\r\n\x1a\n pretended"
"""Sources do not decode images, so any bytes will do."""


def source(name: str, **fields: Any) -> Source:
    """Returns a registered source with these fields of its Config, checked like a recipe."""
    choice = choose("source", {"name": name, **fields})
    return choice.component(choice.config)


def read(one: Source) -> list[Any]:
    """Returns all rows, reading each chunk after pickling it; checks that chunks are the same a second time."""
    chunks = list(one.chunks())
    assert list(one.chunks()) == chunks
    again = pickle.loads(pickle.dumps(chunks))
    rows = [row for chunk in again for row in _rows(pickle.loads(pickle.dumps(one)), chunk)]
    assert [row for chunk in chunks for row in _rows(one, chunk)] == rows
    return rows


def _rows(one: Source, chunk: Any) -> Iterable[Row | Refusal | Ignored]:
    return [chunk] if isinstance(chunk, Refusal | Ignored) else one.rows(chunk)


def places(rows: Iterable[Row | Refusal]) -> list[str]:
    """Returns the place of each row."""
    return [row.where for row in rows]


def reasons(rows: Iterable[Row | Refusal]) -> list[str]:
    """Returns the reason of each refusal, and "" for each row."""
    return [row.reason if isinstance(row, Refusal) else "" for row in rows]


def talk(*values: str, **fields: Any) -> dict[str, Any]:
    """Returns a row of LLaVA's format in which human and gpt take turns."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {**fields, "conversations": turns}


def write_array(path: Path, rows: Iterable[Any], **how: Any) -> Path:
    """A JSON array."""
    path.write_text(json.dumps(list(rows), **how), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Returns JSON Lines; a text is a line by itself."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    """A tar of plain files, or of headers as they are given."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
