"""The contrastive loss, its floor and retrieval, against direct formulas and by brute force."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.functional import normalize

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.contrastive import loss as loss_module
from fvl_lightning.modeling.contrastive.evaluation import Pairs, evaluate_pairs, whole_groups
from fvl_lightning.modeling.contrastive.floor import TOLERANCE, duplicate_losses, lowest_losses
from fvl_lightning.modeling.contrastive.loss import contrastive_loss
from fvl_lightning.modeling.contrastive.retrieval import recalls, retrieval_ranks
from fvl_lightning.modeling.contrastive.vectors import caption_means, pair_vectors
from tests.tiny_models import BOS, IMAGE, PAD, rows, tiny_model


def unit(count: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """`count` random vectors of length 1."""
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=-1).to(dtype)


def by_formula(images: Tensor, captions: Tensor, temperature: float, group: int) -> Tensor:
    """The sum over images of -ln(exp(s_ii) / sum_j exp(s_ij)), pair by pair."""
    total = images.new_zeros(())
    for i in range(len(images)):
        first = i // group * group
        others = range(first, min(first + group, len(images)))
        scores = {j: (images[i] * captions[j]).sum() / temperature for j in others}
        total = total - (scores[i].exp() / sum(score.exp() for score in scores.values())).log()  # type: ignore[union-attr]
    return total


@pytest.mark.parametrize(("count", "group"), [(8, 8), (8, 4), (7, 4)])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_loss_is_its_formula(count: int, group: int, temperature: float) -> None:
    images, captions = unit(count, dtype=torch.float32), unit(count, seed=1, dtype=torch.float32)
    found = contrastive_loss(images, captions, temperature, group)
    wanted = by_formula(images.double(), captions.double(), temperature, group)
    assert float(found.sum) / count == pytest.approx(float(wanted) / count, abs=1e-6)
    assert int(found.pairs) == count
    sizes = [min(group, count - i // group * group) for i in range(count)]
    assert int(found.captions) == sum(sizes)


def test_the_gradient_is_that_of_the_formula() -> None:
    """Of images and captions, in float64; and by finite differences."""
    both = [unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()]
    found = torch.autograd.grad(contrastive_loss(*both, 0.3, 3).sum, both)
    wanted = torch.autograd.grad(by_formula(*both, 0.3, 3), both)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda *values: contrastive_loss(*values, 0.3, 3).sum, both)


def test_autocast_does_not_round_similarities() -> None:
    images, captions = unit(8, dtype=torch.float32), unit(8, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(images, captions, 0.07, 8).sum
    assert torch.equal(found, contrastive_loss(images, captions, 0.07, 8).sum)


def test_groups_go_on_from_rank_to_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks of 2, 0 and 4 pairs have the loss of six pairs of one process, here in groups of three."""
    images, captions = unit(6), unit(6, seed=1)
    shares = [(0, 2), (2, 2), (2, 6)]
    parts = []
    for rank, (start, stop) in enumerate(shares):
        first = sum(end - begin for begin, end in shares[:rank])
        monkeypatch.setattr(loss_module, "gather_rows", lambda rows, first=first: (captions, first))
        parts.append(contrastive_loss(images[start:stop], captions[start:stop], 0.5, 3))
    whole = by_formula(images, captions, 0.5, 3)
    assert float(sum(part.sum for part in parts)) == pytest.approx(float(whole), abs=1e-12)
    assert [int(part.pairs) for part in parts] == [2, 0, 4]
    assert sum(int(part.captions) for part in parts) == 18


def test_rows_of_unlike_numbers_are_gathered_in_the_order_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives of two ranks of 1 and 3 rows, played for the second one."""
    own, others = unit(3).requires_grad_(), unit(1, seed=1)

    def all_gather(parts: list[Tensor], value: Tensor) -> None:
        first = torch.tensor(1) if value.ndim == 0 else torch.cat([others, others.new_zeros(2, 6)])
        parts[0].copy_(first)
        parts[1].copy_(value)

    patches: dict[str, Any] = {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: 1,
        "all_gather": all_gather,
        "all_reduce": lambda gradient: gradient.mul_(2),  # the other rank has the same gradient
    }
    for name, patch in patches.items():
        monkeypatch.setattr(distributed, name, patch)
    found, first = loss_module.gather_rows(own)
    assert first == 1
    assert torch.equal(found, torch.cat([others, own]))
    (gradient,) = torch.autograd.grad((found * torch.arange(4)[:, None]).sum(), own)
    assert gradient[:, 0].tolist() == [2, 4, 6]


def test_the_floor_is_below_all_images_and_reached_by_some() -> None:
    """Gradient descent on the images themselves ends above it, and within the tolerance where N is 2."""
    groups = torch.stack([unit(5, 3), unit(5, 3, seed=2)])
    for temperature in (1.0, 0.1):
        floor = lowest_losses(groups, temperature)
        vectors = groups.clone().requires_grad_()
        optimizer = torch.optim.Adam([vectors], 0.02)
        for _ in range(400):
            scores = normalize(vectors, dim=-1) @ groups.mT / temperature
            losses = scores.logsumexp(-1) - scores.diagonal(dim1=1, dim2=2)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        assert (floor <= losses.detach() + 1e-9).all()
        assert (losses.detach() - floor < 0.02).all()
    two = unit(2, 4)[None]
    distance = float((two[0, 0] - two[0, 1]).norm())  # the best image points along the difference
    assert float(lowest_losses(two, 0.5)[0, 0]) == pytest.approx(math.log1p(math.exp(-distance / 0.5)), abs=TOLERANCE)


def test_equal_captions_leave_the_logarithm_of_their_number() -> None:
    """At a low temperature, nothing else is left."""
    captions = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 1]]
    left = [math.log(3)] * 3 + [0.0]
    assert duplicate_losses(torch.tensor([7, 7, 7, 8])).tolist() == pytest.approx(left)
    assert lowest_losses(captions[None], 0.02)[0].tolist() == pytest.approx(left, abs=2 * TOLERANCE)


def ranks_by_hand(queries: Tensor, gallery: Tensor, wanted: list[int], offered: list[int]) -> list[int]:
    """Sorts the gallery of every query, wrong items first among equals, and looks for the first right one."""
    found = []
    for query, label in zip(queries, wanted, strict=True):
        scores = [(-float(query @ item), other == label) for item, other in zip(gallery, offered, strict=True)]
        found.append(1 + [right for _, right in sorted(scores)].index(True))
    return found


def test_retrieval_is_that_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties and equal captions, in blocks of queries."""
    monkeypatch.setattr("fvl_lightning.modeling.contrastive.retrieval.MAX_SCORES", 90)
    generator = torch.Generator().manual_seed(3)
    queries, gallery = (torch.randint(-1, 2, (40, 3), generator=generator).double() for _ in range(2))
    labels = torch.randint(0, 25, (40,), generator=generator)
    found = retrieval_ranks(queries, gallery, labels, labels)
    wanted = ranks_by_hand(queries, gallery, labels.tolist(), labels.tolist())
    assert found.tolist() == wanted
    assert recalls(found)[5] == pytest.approx(sum(rank <= 5 for rank in wanted) / 40)


def test_planted_pairs_are_all_found_and_collapsed_ones_not() -> None:
    captions, texts = unit(12, 12), torch.arange(12)
    found = evaluate_pairs(Pairs(captions, captions, texts), 4, 0.1)
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == found["accuracy"] == 1
    assert found["floor"] - TOLERANCE <= found["loss"] < 0.3
    assert (found["captions"], found["pairs"]) == (4, 12)
    same = torch.ones(12, 12, dtype=torch.float64) / 12**0.5
    collapsed = evaluate_pairs(Pairs(same, same, texts), 4, 1.0)
    assert collapsed["loss"] == pytest.approx(math.log(4))
    assert collapsed["floor"] == pytest.approx(math.log(4), abs=TOLERANCE)
    assert collapsed["image_to_text_r10"] == 0
    broken = evaluate_pairs(Pairs(same * float("nan"), captions, texts), 4, 1.0)
    assert broken["image_to_text_r10"] == 0
    assert math.isnan(broken["loss"])


def test_a_split_is_cut_into_whole_groups() -> None:
    pairs = Pairs(unit(10), unit(10, seed=1), torch.arange(10))
    groups = whole_groups(pairs, 4)
    assert groups.texts.shape == (2, 4)
    assert len(set(groups.texts.flatten().tolist())) == 8
    assert torch.equal(groups.images[0, 1], pairs.images[groups.texts[0, 1]])
    assert whole_groups(pairs, 32).texts.shape == (1, 10)


def test_a_caption_is_read_without_its_image() -> None:
    """Its vector is the mean of the hidden states of a row of bos, caption and end, whatever the padding."""
    model, batch = tiny_model(), rows(3)
    means = caption_means(model, batch.token_ids, batch.labels)
    for row in range(3):
        kept = (batch.token_ids[row] != IMAGE) & (batch.token_ids[row] != PAD)
        ids, supervised = batch.token_ids[row][kept], batch.labels[row][kept] != IGNORE_INDEX
        assert int(ids[0]) == BOS
        hidden = model.language_model(model.language_model.embed(ids[None])).last_hidden_state[0]
        torch.testing.assert_close(means[row], hidden[supervised].mean(0), atol=1e-5, rtol=1e-5)


def test_an_image_is_the_mean_of_its_tokens_and_a_row_without_one_is_no_pair() -> None:
    model, batch = tiny_model(), rows(3)
    token_ids = batch.token_ids.clone()
    token_ids[1].masked_fill_(token_ids[1] == IMAGE, 7)
    images = batch.images[[0, 2]]
    found = pair_vectors(model, token_ids, batch.labels, images)
    assert found.rows.tolist() == [0, 2]
    wanted = normalize(model.embed_images(images).features.mean(1), dim=-1)
    torch.testing.assert_close(found.images, wanted)
    with pytest.raises(ValueError, match="8 image placeholders for 1 images"):
        pair_vectors(model, token_ids, batch.labels, images[:1])
