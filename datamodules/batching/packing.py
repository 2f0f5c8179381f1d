"""Documents packed into rows by best fit."""

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int32], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, whose sums are at most `capacity`.

    Each row begins with the longest item left and takes those of the others that fill it best: exactly, since the sums
    that can be reached are the bits of a whole number, and to add an item is to shift it.
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
                    break  # full to the last token
        best, row = sums.bit_length() - 1, [longest]
        for index, sums_without in reversed(tried):
            if not sums_without >> best & 1:
                row.append(index)
                best -= tokens[index]
                del free[index]
        rows.append(sorted(row))
    return rows
