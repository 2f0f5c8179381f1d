"""The output of a build: a folder, or a URL to which files are uploaded from a local folder."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.building.config import BuildConfig
from datamodules.building.manifest import FORMAT, MANIFEST_NAME, Manifest
from datamodules.building.resume_log import NAME as JOURNAL
from datamodules.building.source_state import State, changes
from datamodules.storage.index import index_path, save_index, scan_tar
from datamodules.storage.remote import is_remote, list_names, put_file, read_bytes
from datamodules.storage.writer import Shard
from fvl_lightning.core.atomic import rename_into_place
from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import DataError

log = logging.getLogger(__name__)

_OF_A_BUILD = re.compile(r"(manifest|refused)(-part\d+of\d+)?\.jsonl?|.+\.(tar|index\.safetensors)")
"""Names of the files that a build, or another part of it, leaves in its output."""

_NOT_IDENTITY = ("output", "processes", "plugins")
"""Fields of a recipe that the shards do not depend on."""


def settings_of(config: BuildConfig) -> dict[str, Any]:
    """Returns the identity of a build: the resolved recipe without the fields that its shards do not depend on."""
    plain = {"format": FORMAT, **as_plain(config)}
    # As the manifest is read back, with lists instead of tuples.
    settings: dict[str, Any] = json.loads(json.dumps(plain, default=str))
    return {name: value for name, value in settings.items() if name not in _NOT_IDENTITY}


class Output:
    """The output of one part of a build; `work` is the folder of unfinished files."""

    def __init__(self, place: str, part: str) -> None:
        self.place = place.rstrip("/")
        number, _, parts = part.partition("/")
        self._part = "" if parts == "1" else f"-part{number}of{parts}"
        self._other_parts = re.compile(rf"\w+-part(?!{number}of)\d+of{parts}-\d+\.tar")
        self._folder = None if is_remote(place) else Path(place)
        self.work = (_staging(self.place) if self._folder is None else self._folder) / f".building{self._part}"
        self.manifest, self.refusals = f"manifest{self._part}.json", f"refused{self._part}.jsonl"
        self._made: list[Path] = []

    def shard_name(self, split: str, number: int) -> str:
        """Returns the name of a split's tar."""
        return f"{split}{self._part}-{number:06d}.tar"

    def finished(self, settings: Mapping[str, Any], sources: State) -> Manifest | None:
        """Returns the manifest of this build if it is finished.

        Raises:
            DataError: the output holds another build or one of a source that has changed, or the finished one lacks a
                shard.
        """
        names = list(self._names())
        for name in filter(MANIFEST_NAME.fullmatch, names):
            try:
                found = Manifest.from_json(self._read(name), f"{self.place}/{name}", already_complete=True)
            except DataError as error:
                raise DataError(f"{error}; choose another output") from None
            self.refuse_other(found.settings, settings)
            self.refuse_changed(found.sources, sources)
            if name == self.manifest:
                self.check_there(found.all_shards)
                return found
        return None

    def refuse_other(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Raises DataError if `found` are not the settings of a part of the same build."""
        different = differences(_whole(found), _whole(wanted))
        if different:
            which = ", ".join(different)
            raise DataError(f"{self.place} holds another build (differing in {which}); choose another output")

    def refuse_changed(self, before: State, now: State) -> None:
        """Raises DataError if the source's files are not those of a build; an unknown state (of an earlier version, or
        of a source that names no files) is not compared."""
        different = changes(before, now) if before else ""
        if different:
            raise DataError(
                f"the source of {self.place} is not the one that it was built from: {different}; `--fresh` builds it "
                "anew, another output keeps both"
            )

    def begin(self) -> None:
        """Creates the work folder, and remembers which folders were created for it."""
        folders = [self.work, *self.work.parents]
        self._made = [folder for folder in folders if not folder.exists()]
        self.work.mkdir(parents=True, exist_ok=True)

    def refuse_strangers(self) -> None:
        """Raises DataError for a tar that is not from another part of this build; logs a warning about other files."""
        names = [name for name in self._names() if not name.startswith(".")]
        tars = sorted(name for name in names if name.endswith(".tar"))
        strangers = [name for name in tars if not self._other_parts.fullmatch(name)]
        if strangers:
            raise DataError(f"{self.place} holds {strangers[0]} of another origin; choose another output")
        others = sorted(name for name in names if not _OF_A_BUILD.fullmatch(name))
        if others:
            log.warning(
                "output: %s holds %d other files and folders (such as %s), between which the shards will lie",
                *(self.place, len(others), others[0]),
            )

    def check_there(self, shards: Iterable[Shard]) -> None:
        """Raises DataError if a shard is neither published nor in the work folder; URLs are not checked."""
        for shard in shards if self._folder is not None else ():
            assert self._folder is not None
            places = (self.work / shard.name, self._folder / shard.name)
            if not any(place.is_file() and place.stat().st_size == shard.bytes for place in places):
                raise DataError(f"{self.place}/{shard.name} is gone or changed; delete {self.place} and build again")

    def publish_shard(self, shard: Shard) -> None:
        """Publishes a finished shard of the work folder after its index, unless that was done before."""
        tar = self.work / shard.name
        if tar.exists():
            save_index(scan_tar(tar), index_path(tar))
            self.publish(index_path(tar))
            self.publish(tar)

    def publish(self, file: Path) -> None:
        """Publishes a file of the work folder."""
        if self._folder is None:
            put_file(file, f"{self.place}/{file.name}")
            file.unlink()
        else:
            file.chmod(0o644)
            rename_into_place(file, self._folder / file.name)

    def tidy(self, keep: Iterable[str] = ()) -> None:
        """Removes what a killed process left in the work folder, except the resume log and the files in `keep`."""
        for name in {path.name for path in self.work.iterdir()} - {JOURNAL, *keep}:
            (self.work / name).unlink()

    def remove_work(self) -> None:
        """Removes the work folder, and the empty folders that were created for it."""
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in self._made[1:]:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        if self._folder is None:
            with suppress(OSError):  # another part uses it
                self.work.parent.rmdir()

    def _names(self) -> Iterator[str]:
        if self._folder is None:
            yield from list_names(self.place)
        elif self._folder.is_dir():
            yield from (path.name for path in self._folder.iterdir())

    def _read(self, name: str) -> str:
        content = read_bytes(f"{self.place}/{name}") if self._folder is None else (self._folder / name).read_bytes()
        return content.decode("utf-8", errors="replace")


def _staging(place: str) -> Path:
    """Returns a local folder that is the same for the same URL."""
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(caches) / "fvl_lightning" / "builds" / hashlib.sha256(place.encode()).hexdigest()[:16]


def _whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings without the number of the part, but with the number of parts.

    What is off in the source is left out: an earlier version may not have had it.
    """
    source = {key: value for key, value in dict(settings.get("source") or {}).items() if value is not False}
    return {**settings, "source": source, "part": str(settings.get("part", "")).partition("/")[2]}
