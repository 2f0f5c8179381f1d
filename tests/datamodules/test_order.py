"""The order of samples: one for any number of ranks, and from any position on."""

from itertools import islice

import pytest

from datamodules.order import GlobalOrder, TrainRows, ValidationRows, epoch_permutation


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    order = GlobalOrder(10, seed=1)
    epochs = [[order[p] for p in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [order[p] for p in range(10)] == epochs[0]  # an epoch left behind comes out the same again
    assert epoch_permutation(10, 2, 0) != epochs[0]


def test_the_order_stays_what_it_was() -> None:
    """A change here breaks the resume of every run: it must not come unnoticed."""
    assert epoch_permutation(8, 0, 0) == [0, 1, 3, 6, 5, 2, 7, 4]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_one_global_order(world_size: int) -> None:
    whole = list(islice(TrainRows(10, 5, batch_size=8), 5))
    ranks = [
        list(islice(TrainRows(10, 5, 8 // world_size, rank=rank, world_size=world_size), 5))
        for rank in range(world_size)
    ]
    for step, rows in enumerate(whole):
        assert sum((ranks[rank][step].indices for rank in range(world_size)), ()) == rows.indices
        assert {ranks[rank][step].position for rank in range(world_size)} == {rows.position} == {8 * (step + 1)}


def test_resume_from_any_position() -> None:
    whole = list(islice(TrainRows(10, 5, batch_size=4), 12))
    for step in (1, 2, 3, 7):
        assert list(islice(TrainRows(10, 5, 4, position=whole[step - 1].position), 12 - step)) == whole[step:]


@pytest.mark.parametrize(("samples", "world_size"), [(10, 1), (10, 2), (9, 4), (1, 3), (16, 2)])
def test_validation_is_one_pass_in_order(samples: int, world_size: int) -> None:
    ranks = [list(ValidationRows(samples, 4, rank, world_size)) for rank in range(world_size)]
    assert {len(rows) for rows in ranks} == {len(ValidationRows(samples, 4, 0, world_size))}
    seen = [i for step in zip(*ranks, strict=True) for rows in step if rows.supervised for i in rows.indices]
    assert seen == list(range(samples))
    assert all(rows.indices for rank in ranks for rows in rank)
    assert ranks[0][-1].position == samples
