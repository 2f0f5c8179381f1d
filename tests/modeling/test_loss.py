"""The loss equals torch's own, and only logits of supervised positions are computed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling import loss as loss_module
from fvl_lightning.modeling.loss import token_loss

D, V = 6, 11
SUM = 1e-5
"""Largest difference of a float32 sum of about 50 nats."""
GRADIENT = 1e-6


class CountingHead:
    """A linear head that remembers how many rows it was given at a time."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.layer = nn.Linear(D, V)
        self.rows: list[int] = []

    def __call__(self, hidden: Tensor) -> Tensor:
        self.rows.append(hidden.shape[0])
        return self.layer(hidden)


def inputs(supervised: int, rows: int = 3, length: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, length, D, generator=generator).requires_grad_()
    labels = torch.randint(0, V, (rows * length,), generator=generator)
    labels[torch.randperm(rows * length, generator=generator)[supervised:]] = IGNORE_INDEX
    return hidden, labels.view(rows, length)


def gradients(loss: Tensor, hidden: Tensor, head: CountingHead) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, head.layer.weight, head.layer.bias]))


@pytest.mark.parametrize("supervised", [30, 17, 1])
def test_it_is_torchs_cross_entropy(supervised: int) -> None:
    hidden, labels = inputs(supervised)
    head = CountingHead()
    ours = token_loss(hidden, labels, head, V)
    logits = head.layer(hidden).flatten(0, 1)
    theirs = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(ours.sum, theirs, atol=SUM, rtol=0)
    torch.testing.assert_close(ours.mean, theirs / supervised, atol=SUM, rtol=0)
    assert int(ours.tokens) == supervised
    assert int(ours.correct) == int((logits.argmax(-1) == labels.flatten()).sum())
    for found, wanted in zip(gradients(ours.sum, hidden, head), gradients(theirs, hidden, head), strict=True):
        torch.testing.assert_close(found, wanted, atol=GRADIENT, rtol=0)


@pytest.mark.parametrize(("supervised", "chunks"), [(30, [4, 4, 4, 4, 4, 4, 4, 2]), (8, [4, 4]), (9, [4, 4, 1])])
def test_in_chunks_it_is_the_same(supervised: int, chunks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, labels = inputs(supervised)
    plain_head, head = CountingHead(), CountingHead()
    plain = token_loss(hidden, labels, plain_head, V)
    monkeypatch.setattr(loss_module, "MAX_LOGIT_ELEMENTS", 4 * V + 1)
    chunked = token_loss(hidden, labels, head, V)
    assert head.rows == chunks
    torch.testing.assert_close(chunked.sum, plain.sum, atol=SUM, rtol=0)
    assert (int(chunked.tokens), int(chunked.correct)) == (int(plain.tokens), int(plain.correct))
    wanted = gradients(plain.sum, hidden, plain_head)
    for found, expected in zip(gradients(chunked.sum, hidden, head), wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=GRADIENT, rtol=0)
    assert head.rows == chunks, "no logits are computed twice"


@pytest.mark.parametrize("supervised", [0, 1, 13])
def test_unsupervised_positions_get_no_logits(supervised: int) -> None:
    hidden, labels = inputs(supervised)
    head = CountingHead()
    token_loss(hidden, labels, head, V)
    assert head.rows == [supervised]


@pytest.mark.parametrize("at_once", [2**25, 1])
def test_nothing_supervised(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero, not nan, and gradients of zero: a batch of questions alone moves nothing."""
    monkeypatch.setattr(loss_module, "MAX_LOGIT_ELEMENTS", at_once)
    hidden, labels = inputs(0)
    head = CountingHead()
    loss = token_loss(hidden, labels, head, V)
    assert (float(loss.sum.detach()), float(loss.mean.detach()), int(loss.tokens), int(loss.correct)) == (0, 0, 0, 0)
    assert not any(gradient.any() for gradient in gradients(loss.sum, hidden, head))


def test_a_vocabulary_larger_than_the_limit_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "MAX_LOGIT_ELEMENTS", V - 1)
    hidden, labels = inputs(3)
    head = CountingHead()
    token_loss(hidden, labels, head, V)
    assert head.rows == [1, 1, 1]


def in_bfloat16(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda hidden: layer.to(torch.bfloat16)(hidden)


def test_the_sum_is_float32() -> None:
    """In bfloat16 a sum of 2,700 nats would be known to 16 nats only; here it is known to 0.1."""
    torch.manual_seed(0)
    hidden, labels = torch.randn(1, 1000, D).to(torch.bfloat16), torch.randint(0, V, (1, 1000))
    layer = nn.Linear(D, V)
    loss = token_loss(hidden, labels, in_bfloat16(layer), V)
    exact = nn.functional.cross_entropy(layer(hidden)[0].double(), labels[0], reduction="sum")
    assert loss.sum.dtype == torch.float32
    assert float((loss.sum.detach() - exact.detach()).abs()) < 0.1


# Per data set.


@pytest.mark.parametrize(("at_once", "supervised"), [(2**25, 30), (4 * V + 1, 17), (4 * V + 1, 0)])
def test_losses_per_dataset_are_shares_of_the_sum(
    at_once: int, supervised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the cross entropy of its own tokens; the third data set has none; ids where unsupervised are unread."""
    monkeypatch.setattr(loss_module, "MAX_LOGIT_ELEMENTS", at_once)
    hidden, labels = inputs(supervised)
    ids = torch.arange(labels.numel()).view_as(labels) % 2
    ids = ids.masked_fill(labels == IGNORE_INDEX, -1)
    plain_head, head = CountingHead(), CountingHead()
    plain = token_loss(hidden, labels, plain_head, V)
    loss = token_loss(hidden, labels, head, V, ids, 3)
    assert plain.dataset_sums is None
    assert plain.dataset_tokens is None
    assert loss.dataset_sums is not None
    assert loss.dataset_tokens is not None
    for dataset in range(3):
        own = token_loss(hidden, labels.masked_fill(ids != dataset, IGNORE_INDEX), CountingHead(), V)
        torch.testing.assert_close(loss.dataset_sums[dataset], own.sum.detach(), atol=SUM, rtol=0)
        assert int(loss.dataset_tokens[dataset]) == int(own.tokens)
    assert not loss.dataset_sums.requires_grad
    torch.testing.assert_close(loss.sum, plain.sum, atol=SUM, rtol=0)
    assert (int(loss.tokens), int(loss.correct)) == (int(plain.tokens), int(plain.correct))
    wanted = gradients(plain.sum, hidden, plain_head)
    for found, expected in zip(gradients(loss.sum, hidden, head), wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=GRADIENT, rtol=0)
    assert head.rows == plain_head.rows, "no logit is computed a second time"
