"""Replaces a finished build by a new one: `fvl shards build --fresh`.

    set  ->  .set.fresh is built beside it; set becomes .set.replaced; .set.fresh becomes set; .set.replaced is removed

A process that is killed in between leaves the old build or the new one, and the next start finishes what it began. A
killed fresh build resumes, as any other build does.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.building.manifest import MANIFEST_NAME, Manifest
from datamodules.building.output import Output
from datamodules.building.resume_log import ResumeLog, refuse_running
from datamodules.building.source_state import State
from datamodules.storage.remote import is_remote
from fvl_lightning.core.errors import ConfigError, DataError

_REMADE = re.compile(
    r"(manifest|refused)(-part\d+of\d+)?\.jsonl?|.+\.index\.safetensors|.+\.lengths-\w+\.npz(\.lock)?|\.building.*"
)
"""Names of files and folders of a build, besides its tars, and of what training keeps beside them."""


class Replacement:
    """A build that takes the place of the one in a folder; `new` is the folder that it is built in."""

    def __init__(self, place: str, part: str) -> None:
        self._place, self._part = place, part
        self._old = None if is_remote(place) else Path(os.path.realpath(place))
        self.new = "" if self._old is None else str(self._beside("fresh"))

    def recover(self) -> None:
        """Finishes a replacement that was killed between its last steps."""
        if self._old is None or not (replaced := self._beside("replaced")).exists():
            return
        if not self._old.exists():
            new = Path(self.new)
            (new if new.exists() else replaced).rename(self._old)
        shutil.rmtree(replaced, ignore_errors=True)

    def begin(self, settings: Mapping[str, Any], sources: State) -> None:
        """Checks that the old build may be replaced, and removes what a fresh build of other content left.

        Raises:
            ConfigError: a part, or a URL.
            DataError: the folder holds other files than those of a build, or another process is building there.
        """
        if self._old is None or self._part != "1/1":
            what = "a part cannot be replaced alone" if self._old else "a folder under a URL cannot be replaced at once"
            raise ConfigError(f"--fresh: {what}, name another output")
        self._refuse_others(self._old)
        new = Output(self.new, self._part)
        try:
            new.finished(settings, sources)
            if new.work.is_dir():
                with ResumeLog(new.work) as begun:
                    new.refuse_other(begun.settings or {}, settings)
                    new.refuse_changed(begun.sources, sources)
        except DataError:
            refuse_running(new.work)
            shutil.rmtree(self.new)

    def finish(self) -> None:
        """Puts the new build in the place of the old one."""
        assert self._old is not None
        replaced = self._beside("replaced")
        if self._old.exists():
            self._refuse_others(self._old)
            self._old.rename(replaced)
        Path(self.new).rename(self._old)
        shutil.rmtree(replaced, ignore_errors=True)

    def _beside(self, ending: str) -> Path:
        assert self._old is not None
        return self._old.with_name(f".{self._old.name}.{ending}")

    def _refuse_others(self, folder: Path) -> None:
        """Raises DataError where the folder has files that no build made: they would be removed with it."""
        if not folder.exists():
            return
        if not folder.is_dir():
            raise DataError(f"{self._place} is not a folder")
        old = Output(str(folder), self._part)
        refuse_running(old.work)
        names = sorted(path.name for path in folder.iterdir())
        built = set()
        for name in filter(MANIFEST_NAME.fullmatch, names):
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            built |= {shard.name for shard in Manifest.from_json(text, f"{self._place}/{name}").all_shards}
        if old.work.is_dir():
            with ResumeLog(old.work) as begun:
                built |= {shard.name for shards in begun.state.shards.values() for shard in shards}
        others = [name for name in names if name not in built and not _REMADE.fullmatch(name)]
        if others:
            raise DataError(
                f"--fresh replaces the folder {self._place}, and {others[0]} in it is not of a build; move it, or "
                "choose another output"
            )
