"""The traffic of compiled code: neighbouring element-wise operations become one, which keeps its intermediates."""

from collections.abc import Sequence
from itertools import groupby

from benchmarks.roofline.operations import Operation


def fused(operations: Sequence[Operation], component: str) -> list[Operation]:
    """Returns the operations, where each run of element-wise ones in a block of a component is one operation.

    It reads every tensor once that was there before, and writes those that a later operation reads or that remain. A
    compiler may do better: it computes some of what the backward pass needs again instead of writing it.
    """
    last_read = {number: index for index, operation in enumerate(operations) for number in operation.reads}
    found: list[Operation] = []
    for (fusable, owner), run in groupby(enumerate(operations), key=lambda pair: _key(pair[1], component)):
        members = list(run)
        if fusable and len(members) > 1:
            found.append(_one([one for _, one in members], owner, members[-1][0], last_read))
        else:
            found += [one for _, one in members]
    return found


def _key(operation: Operation, component: str) -> tuple[bool, str]:
    return operation.kind == "elementwise" and operation.owner.startswith(component), operation.owner


def _one(run: Sequence[Operation], owner: str, end: int, last_read: dict[int, int]) -> Operation:
    """Returns what a run is as a single operation; `end` is the index of its last member."""
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for operation in run:
        for number, size in operation.reads.items():
            if number not in writes:
                reads[number] = max(reads.get(number, 0), size)
        for number, size in operation.writes.items():
            writes[number] = max(writes.get(number, 0), size)
    needed = {
        number: size for number, size in writes.items() if number in reads or last_read.get(number, end + 1) > end
    }
    return Operation("fused", owner, "elementwise", any(o.narrow for o in run), 0, reads, needed, run[0].times)
