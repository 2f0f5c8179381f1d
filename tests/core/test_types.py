"""What flows between the slots."""

import torch

from fvl_lightning.core.types import IGNORE_INDEX, Batch, FeatureSpec, PromptedBatch


def test_the_prefix_is_what_stands_before_the_map() -> None:
    assert FeatureSpec(tokens=17, dim=8, grid=(4, 4)).prefix == 1
    assert FeatureSpec(tokens=16, dim=8, grid=(4, 4)).prefix == 0
    assert FeatureSpec(tokens=16, dim=8, grid=None).prefix == 0


def test_ignored_labels_are_those_of_cross_entropy() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE_INDEX


def test_a_batch_moves_with_everything_it_holds() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    batch = Batch(ids, ids, torch.zeros(1, 3, 4, 4), {"davit": torch.zeros(1, 2, 8)}, ("a", "b"), 2)
    moved = batch.to("meta")
    assert moved.images is not None
    assert moved.features is not None
    tensors = [moved.token_ids, moved.labels, moved.images, *moved.features.values()]
    assert all(tensor.is_meta for tensor in tensors)
    assert (moved.keys, moved.position) == (("a", "b"), 2)
    assert not batch.token_ids.is_meta


def test_a_batch_without_images_moves() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    moved = Batch(ids, ids, None, None, ("a", "b"), 2).to("meta")
    assert moved.images is None
    assert moved.features is None


def test_a_prompted_batch_moves() -> None:
    moved = PromptedBatch(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 5, dtype=torch.int64), ("a",), 1).to("meta")
    assert moved.images.is_meta
    assert moved.targets.is_meta
