"""Builds WebDataset shards with indexes and a manifest from any source of image-text data: `fvl shards build`.

    source -> chunks -> (processes) rows, checked and encoded -> (this process) tars, in the order of the source

Any number of processes check rows, but one process writes, in order, so the bytes do not depend on the number. A build
that was killed resumes at its last finished shard (resume_log.py) and ends with the same bytes.
"""

import json
import logging
import operator
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from datamodules.building.config import BuildConfig
from datamodules.building.manifest import BuildProgress, Manifest, Reporter, in_words
from datamodules.building.output import Output, settings_of
from datamodules.building.processes import prepare_all
from datamodules.building.replacement import Replacement
from datamodules.building.resume_log import Position, ResumeLog
from datamodules.building.row_to_sample import BuiltSample, Outcome
from datamodules.building.source_state import State, at_commits_of, commits_of, state_of
from datamodules.building.splits import MANY, few_images
from datamodules.sources.base import Ignored, Refusal, Source
from datamodules.storage.writer import Length, OpenShard, Shard, whole_size
from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.errors import ConfigError, DataError, os_error_in_words

log = logging.getLogger(__name__)

_MOST_KINDS = 100
"""Kinds of ignored content that are counted separately: every line of the resume log has them all."""
_KIND_CHARACTERS = 100

Report = Callable[[BuildProgress], None]

_LOG = "refused.log"
"""The file of refusals so far, in the work folder."""


def build_shards(config: BuildConfig, progress: Report | None = None, fresh: bool = False) -> Manifest:
    """Builds the shards of a checked recipe, or the part that it names; resumes a build that was killed.

    A finished build is left alone if its source has not changed; its manifest then has `already_complete`. A dataset
    of the hub is read at the commit that it has when the build begins, however often that is killed.

    Args:
        config: the recipe.
        progress: is called now and then.
        fresh: whether to build anew beside a finished build, which is replaced at the end.

    Raises:
        ConfigError: no source, or `fresh` for a part or a URL.
        DataError: the source cannot be read, has no good row or has changed, the output cannot be written or holds
            something else, or another process is building there.
    """
    if config.source is None:
        raise ConfigError("source: a build needs one, such as source.name=llava_json")
    source: Source = config.source.component(config.source.config)
    output, settings = Output(config.output, config.part), settings_of(config)
    replacement = Replacement(config.output, config.part)
    try:
        replacement.recover()
        now = state_of(source.inputs())
        if fresh:
            replacement.begin(settings, now)
            output = Output(replacement.new, config.part)
        finished = output.finished(settings, now)
        if finished is None:
            finished = _build(config, source, output, settings, now, progress)
        else:
            output.remove_work()
        if fresh:
            replacement.finish()
            return replace(finished, already_complete=False)
        return finished
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise DataError(f"the build of {config.output} stopped: {os_error_in_words(error)}{place}") from None


def _build(
    config: BuildConfig,
    source: Source,
    output: Output,
    settings: dict[str, Any],
    sources: State,
    progress: Report | None,
) -> Manifest:
    output.begin()
    with ResumeLog(output.work) as journal:
        # A build without a finished shard has nothing to lose, so a corrected recipe may start again.
        if journal.settings is not None and journal.state.shards:
            output.refuse_other(journal.settings, settings)
            sources = at_commits_of(journal.sources, sources)
            output.refuse_changed(journal.sources, sources)
            output.check_there(shard for shards in journal.state.shards.values() for shard in shards)
        try:
            if not journal.state.shards:
                output.refuse_strangers()
                output.tidy()
                journal.begin(settings, sources)
            build = _Build(config, output, journal)
            with closing(build):
                if build.state.shards:
                    shards = sum(map(len, build.state.shards.values()))
                    rows = build.before.samples + build.before.refused
                    log.info("the build of %s goes on behind %d rows, %d shards are done", output.place, rows, shards)
                build.run(source.pinned(commits_of(sources)), progress)
                manifest = build.finish(settings)
        except BaseException:
            if not journal.state.shards:
                output.remove_work()
            raise
        output.remove_work()
    return manifest


class _Build:
    """The unfinished shards and the log of refusals, restored to where the resume log ends."""

    def __init__(self, config: BuildConfig, output: Output, journal: ResumeLog) -> None:
        self.config, self.output, self.journal, self.state = config, output, journal, journal.state
        whole = [shard for shards in self.state.shards.values() for shard in shards]
        for shard in whole:
            output.publish_shard(shard)
        names = {split: self._name(split) for split in self.state.open}
        output.tidy(keep=[*names.values(), _LOG])
        self._open: dict[str, OpenShard] = {}
        for split, length in self.state.open.items():
            self._open[split] = OpenShard(output.work / names[split], length)
        self._log = (output.work / _LOG).open("ab")
        self._log.truncate(self.state.refused_bytes)
        self._log.seek(0, os.SEEK_END)
        self._next = self.state.position
        self._places = None if self.state.places is None else set(self.state.places)
        lengths: list[Shard | Length] = [*whole, *self.state.open.values()]
        self.before = BuildProgress(
            samples=sum(each.samples for each in lengths),
            images=sum(each.images for each in lengths),
            refused=sum(self.state.refused.values()),
        )

    def run(self, source: Source, progress: Report | None) -> None:
        """Reads the source from the current position to its end."""
        first, parts = (int(number) for number in self.config.part.split("/"))
        chunks = source.chunks()
        count = operator.length_hint(chunks, -1)
        chunks_in_part = len(range(first - 1, count, parts)) if count >= 0 else None
        done = len(range(first - 1, self._next[0], parts))
        reporter = Reporter(replace(self.before, chunks=done, chunks_in_all=chunks_in_part), progress)
        jobs = (
            (number, chunk)
            for number, chunk in enumerate(chunks)
            if number % parts == first - 1 and number >= self._next[0]
        )
        processes = self.config.processes or os.cpu_count() or 1
        prepared = prepare_all(source, jobs, self.config.splits, processes, self.output.work, self.config.plugins)
        with closing(prepared):
            for number, outcomes in prepared:
                for row, outcome in enumerate(outcomes):
                    if (number, row) >= self._next:
                        self._add((number, row), outcome)
                        if isinstance(outcome, BuiltSample):
                            reporter.add(1, outcome.images)
                        elif isinstance(outcome, Refusal):
                            reporter.add(refused=outcome.rows)
                self._next = (number + 1, 0)
                reporter.add(chunks=1)
        reporter.report()

    def finish(self, settings: dict[str, Any]) -> Manifest:
        """Finishes every shard and publishes the log and the manifest."""
        for split in sorted(self._open):
            self._finish_shard(split)
        self._log.close()
        if self.state.refused:
            shutil.copyfile(self.output.work / _LOG, self.output.work / self.output.refusals)
            self.output.publish(self.output.work / self.output.refusals)
        if not self.state.shards:
            raise self._nothing()
        shards = {split: self.state.shards.get(split, []) for split in sorted(self.config.splits)}
        if self._places is not None and (why := few_images(sorted(self._places), self.config.splits)):
            log.warning("%s: %s", self.config.output, why)
        refused, passed_over = dict(self.state.refused), dict(self.state.passed_over)
        manifest = Manifest(settings, shards, refused, passed_over, self.journal.sources)
        file = self.output.work / self.output.manifest
        write_text_atomically(file, manifest.to_json())
        self.output.publish(file)
        return manifest

    def close(self) -> None:
        """Closes all files."""
        self._log.close()
        for shard in self._open.values():
            shard.close()

    def _add(self, position: Position, outcome: Outcome) -> None:
        self._next = position
        if isinstance(outcome, BuiltSample):
            self._make_room(outcome)
            self._open[outcome.split].append(outcome.members, outcome.images)
            if self._places is not None:
                self._places.add(outcome.place)
                self._places = self._places if len(self._places) <= MANY else None
            for name in outcome.unused:
                self._pass_over(f"fields '{name}'", 1)
        elif isinstance(outcome, Ignored):
            self._pass_over(outcome.kind, outcome.count)
        else:
            self._refuse(outcome, outcome.where or f"chunk {position[0]}, row {position[1]}")
        self._next = (position[0], position[1] + 1)
        if (
            isinstance(outcome, BuiltSample)
            and self._open[outcome.split].length.samples == self.config.samples_per_shard
        ):
            self._finish_shard(outcome.split)

    def _refuse(self, refusal: Refusal, where: str) -> None:
        line = {"where": where, "id": refusal.id, "reason": refusal.reason, "detail": refusal.detail}
        if refusal.rows != 1:
            line["rows"] = refusal.rows
        self._log.write(json.dumps(line).encode() + b"\n")
        self.state.refused[refusal.reason] = self.state.refused.get(refusal.reason, 0) + refusal.rows

    def _pass_over(self, kind: str, count: int) -> None:
        # A JSON key may hold half a character, which no terminal prints.
        kind = kind[:_KIND_CHARACTERS].encode(errors="backslashreplace").decode()
        counts = self.state.passed_over
        kind = kind if kind in counts or len(counts) < _MOST_KINDS else "(others)"
        counts[kind] = counts.get(kind, 0) + count

    def _make_room(self, sample: BuiltSample) -> None:
        """Opens a new shard of the sample's split if the sample does not fit into the open one."""
        shard = self._open.get(sample.split)
        if shard and whole_size(shard.length.bytes + len(sample.members)) > self.config.bytes_per_shard:
            self._finish_shard(sample.split)
            shard = None
        if shard is None:
            self._open[sample.split] = OpenShard(self.output.work / self._name(sample.split))

    def _finish_shard(self, split: str) -> None:
        """Finishes a shard; once the resume log has it, no row before the next one is read again."""
        name = self._name(split)
        shard = self._open.pop(split).finish(name)
        for other in self._open.values():
            other.sync()
        self._log.flush()
        os.fsync(self._log.fileno())
        self.state.shards.setdefault(split, []).append(shard)
        self.state.open = {other: opened.length for other, opened in self._open.items()}
        self.state.position, self.state.refused_bytes = self._next, self._log.tell()
        self.state.places = None if self._places is None else sorted(self._places)
        self.journal.add(split, shard)
        self.output.publish_shard(shard)

    def _name(self, split: str) -> str:
        return self.output.shard_name(split, len(self.state.shards.get(split, [])))

    def _nothing(self) -> DataError:
        source, part = self.config.source.name, self.config.part
        where = "" if part == "1/1" else f" in part {part}"
        passed_over = in_words(self.state.passed_over)
        ignored = f"; passed over: {passed_over}" if passed_over else ""
        if not self.state.refused:
            return DataError(f"the source {source} has no rows{where}, so there is nothing to build{ignored}")
        reason, count = max(self.state.refused.items(), key=lambda item: item[1])
        rows = sum(self.state.refused.values())
        log = f"{self.output.place}/{self.output.refusals}"
        message = f"none of the {rows} rows of {source}{where} is usable, {count} for '{reason}'{self._example(reason)}"
        return DataError(f"{message}; {log} has all{ignored}")

    def _example(self, reason: str) -> str:
        """Returns the place and detail of the first row that was refused for a reason."""
        with (self.output.work / _LOG).open(encoding="utf-8") as lines:
            first = next(row for row in map(json.loads, lines) if row["reason"] == reason)
        return f" ({first['where']}: {first['detail']})" if first["detail"] else f" ({first['where']})"
