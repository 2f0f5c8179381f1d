"""Checks of the shards: are they there, readable and complete?"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.inspection.check import check_tar
from datamodules.storage.index import index_path
from datamodules.storage.remote import is_remote
from datamodules.storage.shard_cache import shard_cache
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import plural
from fvl_lightning.doctor.finding import Finding

SPLITS = ("train", "validation")


def check_shards(experiment: ExperimentConfig, data: Any) -> Iterator[Finding]:
    """The shards of both splits are there, have indexes that fit them, and suffice; DataError where one is damaged."""
    if bare := _bare(data):
        advice = f"`fvl shards index {Path(bare[0]).parent}` makes it; training would, with all ranks waiting"
        yield Finding("shards", "warning", f"{plural(len(bare), 'shard')} without an index, such as {bare[0]}", advice)
        return
    found = {split: [shard for part in data.parts(split) for shard in part.shards] for split in SPLITS}
    samples = {split: len(data.store(split)) for split in SPLITS}
    said = ", ".join(f"{split}: {plural(len(found[split]), 'shard')}, {samples[split]:,} samples" for split in SPLITS)
    yield Finding("shards", "ok", f"{said}; every one serves any number of ranks and workers")
    ranks = experiment.trainer.world_size
    if samples["validation"] < ranks:
        advice = "hold more samples out"
        said = f"{samples['validation']} samples to validate on for {ranks} ranks: some would have none"
        yield Finding("shards", "warning", said, advice)
    local = next((shard for shard in found["train"] if not is_remote(shard)), None)
    if local is not None:
        yield _first_shard(local)


def count_samples(data: Any) -> int | None:
    """Samples of the split train; None where that takes indexing shards."""
    return None if _bare(data) else len(data.store("train"))


def prepare_data(data: Any, doing: Callable[[str], None]) -> Iterator[Finding]:
    """Opens shards that have indexes, and draws the demo set where it is not there, which `doing` is told before."""
    try:
        bare, missing = _bare(data), False
    except DataError:
        bare, missing = [], True
        doing("drawing the demo set")
    if bare:
        return
    with suppress(DataError):  # what is wrong with shards is said by their own check
        data.prepare_data()
        if missing:
            folder = Path(data.parts("train")[0].shards[0]).parent
            yield Finding("shards", "ok", f"they were not there, and have been drawn into {folder}, as a training does")


def _bare(data: Any) -> list[str]:
    """Shards of this machine that have no index yet."""
    every = [shard for split in SPLITS for part in data.parts(split) for shard in part.shards]
    return [shard for shard in every if not is_remote(shard) and not index_path(Path(shard)).is_file()]


def _first_shard(shard: str) -> Finding:
    """One shard byte by byte, for a copy that was cut short or an index of another tar."""
    checked = check_tar({}, shard_cache(), shard)
    if not checked.findings.counts:
        said = "its size, structure and index agree (`fvl shards check` compares checksums)"
        return Finding("shards", "ok", f"{shard}: {said}")
    reason, examples = next(iter(checked.findings.examples.items()))
    detail = f": {examples[0].detail}" if examples[0].detail else ""
    advice = "`fvl shards check` looks at all of them; build or copy the damaged ones anew"
    return Finding("shards", "failed", f"{shard}: {reason}{detail}", advice)
