"""Whole tensors for a computation that needs all rows, each of them on one of the ranks that hold its shards."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor


class Owners:
    """Exchanges the shards of tensors [R, ...] of one shape so that rank r of W has the tensors r, r + W, ... whole.

    All ranks of a group must make the same calls. A rank sends and receives its share of the tensors, 1/W of all.

    Args:
        like: a tensor that is sharded by rows over the last dimension of its mesh, as the others are.
    """

    def __init__(self, like: DTensor) -> None:
        last = like.device_mesh.ndim - 1
        self.ranks, self._rank = like.device_mesh.size(last), like.device_mesh.get_local_rank(last)
        self._group = like.device_mesh.get_group(last)
        rows = math.ceil(like.shape[0] / self.ranks)
        self._rows = [max(0, min(rows, like.shape[0] - rank * rows)) for rank in range(self.ranks)]
        """The rows that each rank holds."""
        self._row_shape = like.shape[1:]

    def gather(self, shards: Sequence[Tensor]) -> Tensor:
        """Returns the whole tensors [M, R, ...] that this rank owns, given its shards of all tensors."""
        counts = self._counts(len(shards))
        sent = [shard for owner in range(self.ranks) for shard in shards[owner :: self.ranks]]
        received = self._exchange(
            torch.cat([shard.flatten() for shard in sent]),
            [count * self._rows[self._rank] for count in counts],
            [counts[self._rank] * rows for rows in self._rows],
        )
        parts = zip(received, self._rows, strict=True)
        return torch.cat([part.view(counts[self._rank], rows, *self._row_shape) for part, rows in parts], dim=1)

    def scatter(self, tensors: Tensor, count: int) -> list[Tensor]:
        """Returns the shards of this rank of all `count` tensors, given the whole ones [M, R, ...] that it owns."""
        counts = self._counts(count)
        received = self._exchange(
            torch.cat([part.flatten() for part in tensors.split(self._rows, dim=1)]),
            [counts[self._rank] * rows for rows in self._rows],
            [owned * self._rows[self._rank] for owned in counts],
        )
        shape = (self._rows[self._rank], *self._row_shape)
        parts = [part.view(owned, *shape) for owned, part in zip(counts, received, strict=True)]
        return [parts[number % self.ranks][number // self.ranks] for number in range(count)]

    def _counts(self, count: int) -> list[int]:
        """Returns how many of `count` tensors each rank owns."""
        return [len(range(owner, count, self.ranks)) for owner in range(self.ranks)]

    def _exchange(self, values: Tensor, sent: list[int], received: list[int]) -> list[Tensor]:
        """Sends rows to each rank and returns what each rank has sent, flat; the lists count rows."""
        size = math.prod(self._row_shape)
        output = values.new_empty(sum(received) * size)
        in_sizes, out_sizes = [rows * size for rows in sent], [rows * size for rows in received]
        distributed.all_to_all_single(output, values, out_sizes, in_sizes, group=self._group)
        return list(output.split(out_sizes))
