"""Packs samples into rows by best fit."""

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int32], capacity: int) -> list[list[int]]:
    """Returns rows of indices into `lengths` [n]; the lengths of a row add up to at most `capacity`.

    Each row starts with the longest remaining item and adds the items that fill it best. This subset-sum problem is
    solved exactly: the reachable sums are the bits of an integer, and adding an item is a shift.
    """
    tokens = lengths.tolist()
    free = dict.fromkeys(range(len(tokens)))
    rows: list[list[int]] = []
    for longest in np.argsort(-lengths, kind="stable").tolist():
        if longest not in free:
            continue
        del free[longest]
        room = capacity - tokens[longest]
        assert room >= 0, f"an item of {tokens[longest]} tokens in rows of {capacity}"
        sums, within, tried = 1, (1 << (room + 1)) - 1, []
        for index in free:
            if tokens[index] <= room:
                tried.append((index, sums))
                sums = (sums | sums << tokens[index]) & within
                if sums >> room:
                    break  # the row is full
        best, row = sums.bit_length() - 1, [longest]
        for index, sums_without in reversed(tried):
            if not sums_without >> best & 1:
                row.append(index)
                best -= tokens[index]
                del free[index]
        rows.append(sorted(row))
    return rows
