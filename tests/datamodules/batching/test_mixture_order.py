"""The global order: one for any number of ranks, from any position on, with exact shares."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batching.mixture_order import GlobalOrder, blockwise_permutation, epoch_permutation

SHARES = st.lists(st.sampled_from([0.1, 0.25, 1.0, 1.5, 3.0, 7.0, 665.0]), min_size=1, max_size=5)


def names(count: int) -> list[str]:
    return [f"d{number}" for number in range(count)]


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    order = GlobalOrder([10], seed=1)
    epochs = [order.take(e * 10, e * 10 + 10).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.take(0, 10).tolist() == epochs[0]  # an epoch left behind comes out the same again
    assert epoch_permutation(10, 2, 0).tolist() != epochs[0]


def test_the_order_stays_what_it_was() -> None:
    """A change here breaks the resume of every run: it must not come unnoticed."""
    assert epoch_permutation(8, 0, 0).tolist() == [0, 1, 3, 6, 5, 2, 7, 4]
    mixed = GlobalOrder([5, 3], 0, [2, 1], names(2))
    assert mixed.take(0, 9).tolist() == [7, 4, 0, 5, 2, 1, 6, 3, 2]
    assert blockwise_permutation([3, 4], 0, 0).tolist() == [5, 4, 6, 3, 2, 0, 1]


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 200), st.integers(0, 9))
def test_any_stretch_is_a_stretch_of_the_whole(size: int, start: int, length: int, seed: int) -> None:
    whole = GlobalOrder([size], seed).take(0, 400)
    assert GlobalOrder([size], seed).take(start, start + length).tolist() == whole[start : start + length].tolist()


@settings(deadline=None)
@given(SHARES, st.integers(0, 10**12), st.integers(1, 500))
def test_shares_are_exact_in_any_stretch(shares: list[float], start: int, length: int) -> None:
    """To within the depth of the halving, at both ends of the stretch."""
    sizes = [7 + number for number in range(len(shares))]
    items = GlobalOrder(sizes, 3, shares, names(len(shares))).take(start, start + length)
    bounds = np.cumsum([0, *sizes])
    depth = math.ceil(math.log2(len(shares))) if len(shares) > 1 else 0
    for (low, high), share in zip(pairwise(bounds), shares, strict=True):
        found = int(((items >= low) & (items < high)).sum())
        assert abs(found - length * share / sum(shares)) <= depth + 1e-3


@settings(deadline=None)
@given(SHARES)
def test_every_data_set_goes_through_all_its_items_before_one_comes_again(shares: list[float]) -> None:
    sizes = [3 + 2 * number for number in range(len(shares))]
    items = GlobalOrder(sizes, 5, shares, names(len(shares))).take(0, 3000)
    bounds = np.cumsum([0, *sizes])
    for low, high in pairwise(bounds):
        own = items[(items >= low) & (items < high)]
        for epoch in range(len(own) // (high - low)):
            assert sorted(own[epoch * (high - low) : (epoch + 1) * (high - low)]) == list(range(low, high))


def test_without_shares_an_epoch_of_the_mixture_shows_everything_once() -> None:
    items = GlobalOrder([50, 7, 20], 1, None, names(3)).take(0, 77)
    assert sorted(items.tolist()) == list(range(77))


def test_a_data_set_keeps_its_order_beside_others() -> None:
    alone = GlobalOrder([9], 4, None, ["one"]).take(0, 27)
    mixed = GlobalOrder([5, 9], 4, [1, 2], ["other", "one"]).take(0, 60)
    own = mixed[mixed >= 5] - 5
    assert own[:27].tolist() == alone.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_are_gone_through_one_after_the_other(seed: int) -> None:
    blocks = [4, 1, 6, 3]
    order = GlobalOrder([14], seed, None, ["far"], [blocks])
    bounds = np.cumsum([0, *blocks])
    for epoch in range(3):
        items = order.take(epoch * 14, epoch * 14 + 14)
        assert sorted(items.tolist()) == list(range(14))
        visited = np.searchsorted(bounds, items, side="right") - 1
        assert len([1 for one, other in pairwise(visited) if one != other]) == len(blocks) - 1
    assert order.take(0, 14).tolist() != order.take(14, 28).tolist()
