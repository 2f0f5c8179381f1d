"""Rows: packed, grouped or padded, dealt to ranks, and taken up again at any position."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batching.mixture_order import GlobalOrder
from datamodules.batching.packing import best_fit
from datamodules.batching.rows import WINDOW, Layout, RowOrder, TrainRows, ValidationRows, single_rows
from datamodules.encoding.items import Items, Piece

CAPACITY = 100


def row_order(items: int, layout: Layout, seed: int = 0) -> RowOrder:
    lengths = np.random.default_rng(seed).integers(1, CAPACITY + 1, items).astype(np.int32)
    whole = Items.whole(range(items))
    measured = Items(whole.samples, whole.first_turn, whole.last_turn, lengths)
    return RowOrder(GlobalOrder([items], seed), measured, layout, CAPACITY)


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 90))
def test_best_fit_packs_everything_once_and_within_capacity(lengths: list[int], capacity: int) -> None:
    rows = best_fit(np.array(lengths, dtype=np.int32), capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert not sums or sums[-1] <= capacity
    # No two rows could have been one.
    assert len(sums) < 2 or sums[0] + sums[1] > capacity


def test_best_fit_of_a_known_case() -> None:
    """Longest first and greedily (best fit decreasing) would need a third row: 5 beside 4, then 3 and 3 and 3 and 2."""
    assert best_fit(np.array([5, 7, 3, 5], dtype=np.int32), 10) == [[1, 2], [0, 3]]
    lengths = np.array([5, 4, 3, 3, 3, 2], dtype=np.int32)
    assert [sum(lengths[row]) for row in best_fit(lengths, 10)] == [10, 10]


@pytest.mark.parametrize("layout", ["padded", "grouped", "packed"])
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_from_any_position_the_rows_are_those_that_followed(layout: Layout, data: st.DataObject) -> None:
    order = row_order(3000, layout)
    whole = list(islice(order.after(0), 2500))
    at = data.draw(st.integers(0, 2399))
    assert list(islice(order.after(whole[at][1]), 100)) == whole[at + 1 : at + 101]
    assert whole[at][1] > (whole[at - 1][1] if at else 0)


@pytest.mark.parametrize("layout", ["padded", "grouped", "packed"])
def test_an_epoch_shows_each_item_once_whatever_the_layout(layout: Layout) -> None:
    """A window of a small data set is an epoch; of a large one, a number of epochs may be a number of windows."""
    for count, epochs in ((100, 3), (WINDOW, 2), (WINDOW * 3 // 2, 2)):
        rows = []
        for row, position in row_order(count, layout).after(0):
            rows.append(row)
            if position == count * epochs:
                break
        assert sorted(item for row in rows for item in row) == sorted([*range(count)] * epochs)


def test_grouped_rows_are_of_like_length_over_the_seam_of_windows_too() -> None:
    order = row_order(5000, "grouped")
    assert order.items.tokens is not None
    lengths = [int(order.items.tokens[row[0]]) for row, _ in islice(order.after(0), 3 * WINDOW)]
    batches = np.array(lengths).reshape(-1, 32)
    assert (batches.max(1) - batches.min(1)).max() <= 6
    padded = [int(order.items.tokens[row[0]]) for row, _ in islice(row_order(5000, "padded").after(0), 3 * WINDOW)]
    assert (np.array(padded).reshape(-1, 32).max(1) - np.array(padded).reshape(-1, 32).min(1)).min() > 50


def test_packed_rows_come_in_no_order_of_size() -> None:
    """Else training would go from rows of one long item to rows of many short ones, window by window."""
    counts = [len(row) for row, _ in islice(row_order(5000, "packed").after(0), 900)]
    first, second = np.mean(counts[:450]), np.mean(counts[450:900])
    assert abs(first - second) < 0.2 * first


@pytest.mark.parametrize("layout", ["padded", "grouped", "packed"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_one_global_sequence(layout: Layout, world_size: int) -> None:
    order = row_order(50, layout)
    whole = list(islice(TrainRows(order, 8), 40))
    ranks = [list(islice(TrainRows(order, 8 // world_size, 0, rank, world_size), 40)) for rank in range(world_size)]
    for step, rows in enumerate(whole):
        assert sum((ranks[rank][step].rows for rank in range(world_size)), ()) == rows.rows
        assert {ranks[rank][step].position for rank in range(world_size)} == {rows.position}


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_another_number_of_ranks_goes_on_without_loss_or_repetition(layout: Layout) -> None:
    order = row_order(500, layout)
    whole = [row for rows in islice(TrainRows(order, 1), 240) for row in rows.rows]
    before = list(islice(TrainRows(order, 8), 5))
    ranks = [list(islice(TrainRows(order, 25, before[-1].position, rank, 4), 2)) for rank in range(4)]
    seen = [row for rows in before for row in rows.rows]
    seen += [row for step in range(2) for rank in ranks for row in rank[step].rows]
    assert seen == whole


def test_positions_count_samples_where_nothing_is_planned() -> None:
    order = row_order(10, "padded")
    assert [rows.position for rows in islice(TrainRows(order, 4, 0, 1, 2), 3)] == [8, 16, 24]


@pytest.mark.parametrize(("samples", "world_size"), [(10, 1), (10, 2), (9, 4), (1, 3), (16, 2)])
def test_validation_is_one_pass_in_order(samples: int, world_size: int) -> None:
    items = Items.whole(range(samples))
    ranks = [list(ValidationRows(items, 4, rank, world_size)) for rank in range(world_size)]
    assert {len(rows) for rows in ranks} == {len(ValidationRows(items, 4, 0, world_size))}
    supervised = [rows for step in zip(*ranks, strict=True) for rows in step if rows.supervised]
    seen = [piece.sample for rows in supervised for piece in rows.pieces]
    assert seen == list(range(samples))
    assert all(rows.rows for rank in ranks for rows in rank)
    assert ranks[0][-1].position == samples


def test_single_rows_and_pieces() -> None:
    assert single_rows([3, 1]).rows == ((Piece(3),), (Piece(1),))
    items = Items(np.array([4, 4]), np.array([0, 2], dtype=np.int32), np.array([2, 5], dtype=np.int32), None)
    assert [items[0], items[1]] == [Piece(4, (0, 2)), Piece(4, (2, 5))]
    assert Items.whole(range(5, 7))[1] == Piece(6)
