"""The endless stream of samples of one data set: shards in order, read by their readers, shuffled within blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch.utils.data import get_worker_info

from datamodules.storage.remote import open_to_stream
from datamodules.storage.sample import Decode, SampleError
from datamodules.storage.tar_headers import Damaged
from datamodules.streaming.sample import Drawn, StreamedSample
from datamodules.streaming.shard_order import Passed, ShardOrder, ShardVisit, SplitByRank
from datamodules.streaming.shuffle_buffer import shuffled_by_epoch
from datamodules.streaming.tar_stream import stream_members
from fvl_lightning.core.errors import DataError


@dataclass(frozen=True)
class StreamedSet:
    """One data set of a stream, for any reader of any rank.

    Attributes:
        split_by_rank: gives this rank its shards.
        block: samples that are shuffled together.
    """

    order: ShardOrder
    split_by_rank: SplitByRank
    block: int
    decode: Decode

    def draws(self) -> tuple[Iterator[Drawn], Passed]:
        """Returns the samples of this process's shards without end, and which visits they have passed.

        A reader is a worker process, or the training process where there are none.
        """
        from datamodules.storage.wds import DataPipeline, split_by_worker

        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        ranks = self.split_by_rank
        first = self.order.start + ranks.rank + ranks.world_size * number
        passed = Passed(first, ranks.world_size * workers)
        shuffle = partial(shuffled_by_epoch, block=self.block, seed=f"{self.order.seed} {self.order.name} {first}")
        read = partial(read_shards, passed=passed, decode=self.decode, most_empty=len(self.order.shards))
        return iter(DataPipeline(self.order.visits, ranks, split_by_worker, read, shuffle)), passed


def read_shards(visits: Iterator[ShardVisit], passed: Passed, decode: Decode, most_empty: int) -> Iterator[Drawn]:
    """Yields the samples of shards in the order of their tars, as webdataset groups them.

    A damaged tar gives its samples before the damage, except the last one, and then an error for the rest.

    Args:
        passed: records which shards are read.
        most_empty: so many shards without a sample, one after the other, are an error.

    Raises:
        DataError: a shard cannot be read, or too many hold no sample.
    """
    empty = 0
    for visit in visits:
        passed.open(visit)
        empty += 1
        for found in _samples(visit, decode):
            passed.add(visit)
            empty = 0
            yield Drawn(visit, found)
        passed.finish(visit)
        if empty >= most_empty:
            raise DataError(f"{empty} shards hold no sample (members named <key>.json, <key>.jpg), {visit.shard} last")


def _samples(visit: ShardVisit, decode: Decode) -> Iterator[StreamedSample | SampleError]:
    from datamodules.storage.wds import group_by_keys

    refused: list[SampleError] = []

    def refuse(error: Exception) -> bool:
        refused.append(SampleError(visit.shard, str(error.args[0]).partition(":")[0], "duplicate member"))
        return True

    with open_to_stream(visit.shard) as file:
        members = (
            {"fname": name, "data": data, "__url__": visit.shard} for name, data in stream_members(file, visit.shard)
        )
        try:
            for fields in group_by_keys(members, handler=refuse):
                yield from refused
                refused.clear()
                content = {suffix: data for suffix, data in fields.items() if not suffix.startswith("__")}
                yield StreamedSample(visit.shard, fields["__key__"], content, decode)
        except Damaged as damage:
            where = damage.detail or f"at byte {damage.place}"
            refused.append(SampleError(visit.shard, "(the rest)", damage.reason, where))
    yield from refused


def interleaved(sources: list[Iterator[Drawn]], shares: list[float]) -> Iterator[tuple[int, Drawn]]:
    """Yields (number of its data set, sample) without end, so evenly that each set keeps its share of any stretch.

    The set furthest behind its share is drawn from; errors are handed on and do not count.
    """
    total, behind = sum(shares), [0.0] * len(shares)
    while True:
        behind = [lag + share / total for lag, share in zip(behind, shares, strict=True)]
        number = behind.index(max(behind))
        for drawn in sources[number]:
            yield number, drawn
            if isinstance(drawn.sample, StreamedSample):
                break
        behind[number] -= 1
