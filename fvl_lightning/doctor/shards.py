"""Checks that the shards exist, are readable and complete."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from datamodules.base import TRAINING_SPLITS, BatchData
from datamodules.inspection.check import check_tar
from datamodules.storage.index import index_path
from datamodules.storage.remote import is_remote
from datamodules.storage.shard_cache import shard_cache
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import bytes_in_words, plural
from fvl_lightning.doctor.finding import Finding


def check_shards(experiment: ExperimentConfig, data: BatchData) -> Iterator[Finding]:
    """Checks that the shards of both splits exist, match their indexes and have enough samples.

    Raises:
        DataError: a shard is missing or damaged.
    """
    if unindexed := _shards_without_index(data):
        advice = f"`fvl shards index {Path(unindexed[0]).parent}` makes it; training would, with all ranks waiting"
        message = f"{plural(len(unindexed), 'shard')} without an index, such as {unindexed[0]}"
        yield Finding("shards", "warning", message, advice)
        return
    shards = {
        split: [shard for dataset in data.datasets(split) for shard in dataset.shards] for split in TRAINING_SPLITS
    }
    samples = {split: len(data.store(split)) for split in TRAINING_SPLITS if split != "train" or not data.STREAMS}
    counts = {split: f", {count:,} samples" for split, count in samples.items()}
    message = ", ".join(
        f"{split}: {plural(len(shards[split]), 'shard')}{counts.get(split, '')}" for split in TRAINING_SPLITS
    )
    yield Finding("shards", "ok", f"{message}; any number of ranks and workers can read them")
    yield from _reader(data, shards["train"])
    ranks = experiment.trainer.world_size
    if samples["validation"] < ranks:
        advice = "put more samples into the split validation"
        message = f"{samples['validation']} validation samples for {ranks} ranks: some ranks would have none"
        yield Finding("validation split", "warning", message, advice)
    local = next((shard for shard in shards["train"] if not is_remote(shard)), None)
    if local is not None and not data.STREAMS:
        yield _first_shard(local)


def _reader(data: BatchData, shards: list[str]) -> Iterator[Finding]:
    """Advises which of the components `shards` and `webdataset` fits the training shards; nothing for a local index."""
    remote = [shard for shard in shards if is_remote(shard)]
    if data.STREAMS and len(remote) < len(shards):
        message = "webdataset streams local shards, so it shuffles within blocks and resumes by whole shards"
        advice = "`data: shards` shuffles over all samples and resumes exactly; it indexes the shards once"
        yield Finding("reader", "warning", message, advice)
    elif data.STREAMS:
        message = f"webdataset fits: it streams {plural(len(remote), 'remote shard')} without indexes or copies"
        yield Finding("reader", "ok", message)
    elif remote and data.cache is not None:
        needed = sum(data.store("train").bytes_per_shard)
        if needed > data.cache.max_bytes:
            message = f"the remote shards have {bytes_in_words(needed)}, more than the cache keeps"
            advice = "raise data.cache_gigabytes or take `data: webdataset`; else every epoch downloads them again"
            yield Finding("reader", "warning", message, advice)
        else:
            yield Finding("reader", "ok", "shards fits: all remote shards fit into the cache and are downloaded once")


def count_samples(data: BatchData) -> int | None:
    """Returns the number of training samples; None for a stream, or where shards would have to be indexed first."""
    return None if data.STREAMS or _shards_without_index(data) else len(data.store("train"))


def prepare_data(data: BatchData, report_progress: Callable[[str], None]) -> Iterator[Finding]:
    """Opens indexed shards; a data component that makes its own data, such as the demo set, makes it now.

    Calls `report_progress` before it makes data. Errors are left to `check_shards`, which reports them.
    """
    try:
        unindexed, missing = _shards_without_index(data), False
    except DataError:
        unindexed, missing = [], True
        report_progress("making the data set")
    if unindexed:
        return
    with suppress(DataError):
        data.prepare_data()
        if missing:
            folder = Path(data.datasets("train")[0].shards[0]).parent
            yield Finding("made data", "ok", f"there was none yet; it was made in {folder}, as training would do")


def open_existing(experiment: ExperimentConfig) -> BatchData | None:
    """Returns the data of an experiment whose shards and indexes exist; None where something would have to be made."""
    data: BatchData = experiment.data.component(experiment.data.config)
    try:
        if _shards_without_index(data):
            return None
        data.prepare_data()
    except UserError:
        return None
    return data


def _shards_without_index(data: BatchData) -> list[str]:
    """Returns the local shards that have no index yet."""
    splits = [split for split in TRAINING_SPLITS if split != "train" or not data.STREAMS]
    shards = [shard for split in splits for dataset in data.datasets(split) for shard in dataset.shards]
    return [shard for shard in shards if not is_remote(shard) and not index_path(Path(shard)).is_file()]


def _first_shard(shard: str) -> Finding:
    """Reads one shard as a whole, to find a truncated copy or an index of another tar."""
    checked = check_tar({}, shard_cache(), shard)
    if not checked.findings.counts:
        message = "its size, structure and index agree (`fvl shards check` compares checksums)"
        return Finding("first shard", "ok", f"{shard}: {message}")
    reason, examples = next(iter(checked.findings.examples.items()))
    detail = f": {examples[0].detail}" if examples[0].detail else ""
    advice = "`fvl shards check` checks all of them; build or copy the damaged ones again"
    return Finding("first shard", "failed", f"{shard}: {reason}{detail}", advice)
