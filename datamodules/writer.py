"""Samples to ordinary WebDataset tars, with an index beside each."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from webdataset import TarWriter

from datamodules.index import index_path, replacing, save_index, scan_tar


class ShardWriter:
    """Writes `<folder>/<split>-000000.tar`, `-000001.tar` ... with their indexes; equal samples give equal bytes.

    A context manager. Each shard is written beside and renamed once it is whole; on an error the one in progress is
    removed.
    """

    def __init__(self, folder: Path, split: str, samples_per_shard: int = 10_000) -> None:
        assert samples_per_shard > 0
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.split, self.samples_per_shard = folder, split, samples_per_shard
        self.shards = 0
        self._stack = ExitStack()
        self._writer: TarWriter | None = None
        self._samples = 0

    def write(self, key: str, record: dict[str, Any], images: Sequence[bytes] = (), extension: str = "png") -> None:
        """Appends one sample: its JSON and its images, already encoded as `extension` (png, jpg or webp)."""
        if self._writer is None:
            self._open()
        assert self._writer is not None
        assert "." not in key.rpartition("/")[2], f"a key ends at its first dot: {key}"
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        names = [extension] if len(images) == 1 else [f"{i}.{extension}" for i in range(len(images))]
        self._writer.write({"__key__": key, "json": text.encode(), **dict(zip(names, images, strict=True))})
        self._samples += 1
        if self._samples == self.samples_per_shard:
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._writer is not None:
            self._finish()
        self._stack.__exit__(kind, error, traceback)

    def _open(self) -> None:
        self._tar = self.folder / f"{self.split}-{self.shards:06d}.tar"
        self._beside = self._stack.enter_context(replacing(self._tar))
        self._file = self._stack.enter_context(self._beside.open("wb"))
        # A fixed time: the bytes, and with them the manifest's hash, depend on the samples alone. A whole number, or
        # every member gets an extended header of 1 KiB for the fraction.
        self._writer = self._stack.enter_context(TarWriter(self._file, encoder=False, mtime=0))
        self._samples = 0

    def _finish(self) -> None:
        """Closes the tar and puts the index in place, then the tar itself."""
        assert self._writer is not None
        self._writer.close()
        self._file.close()
        save_index(scan_tar(self._beside), index_path(self._tar))
        self._writer = None
        self.shards += 1
        self._stack.close()
