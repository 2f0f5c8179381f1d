"""Every kind of head gets the gradients of torch's cross entropy, in the forward pass or in the backward pass."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling import loss as loss_module
from fvl_lightning.modeling.loss import token_loss
from fvl_lightning.training.distributed.fsdp import gather_tensor

D, V, ROWS = 6, 11, 10
EXACT = 1e-12
"""Of float64 gradients of about 1."""
ROUNDED = 0.02
"""Of gradients of about 1 whose matrix products are in bfloat16."""
Logits = Callable[[Tensor], Tensor]


class Head(nn.Module):
    """A linear head in float64 that counts its calls."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.calls = nn.Linear(D, V, bias).double(), 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(hidden)


class Capped(Head):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(super().forward(hidden) / 2) * 2


class TwoBiases(Head):
    """Both biases have one and the same gradient, and the scores one with the logits."""

    def __init__(self) -> None:
        super().__init__(bias=False)
        self.first, self.second = (nn.Parameter(torch.ones(V).double()) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + self.first.expand(len(hidden), V) + self.second.expand(len(hidden), V)


class Frozen(Head):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Adapted(Head):
    def __init__(self) -> None:
        super().__init__()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False), self.double())
        self.double()


class NoLayer(Head):
    """Its hidden states are the logits."""

    def __init__(self) -> None:
        super().__init__()
        del self.layer

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden


class Hooked(Head):
    """A hook on a gradient must see the whole of it, once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.weight.register_hook(lambda gradient: gradient / gradient.norm())


class ComputedBefore(Head):
    """Its weight is computed outside of the loss, for several uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.layer.weight * 2

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden @ self.weight.T


HEADS = [Head, Capped, TwoBiases, Frozen, Adapted, NoLayer]
LATE = [Hooked, ComputedBefore]


@pytest.fixture(params=[2**25, 4 * V, 1], ids=["whole", "chunks", "rows"], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "MAX_LOGIT_ELEMENTS", request.param)


def inputs(width: int = D) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, ROWS, width, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, V, (2, ROWS), generator=generator)
    return hidden, labels.masked_fill(torch.arange(ROWS) % 3 == 0, IGNORE_INDEX)


def wanted_sum(hidden: Tensor, labels: Tensor, head: Logits) -> Tensor:
    supervised = labels != IGNORE_INDEX
    return nn.functional.cross_entropy(head(hidden[supervised]), labels[supervised], reduction="sum")


def gradients(loss: Tensor, hidden: Tensor, head: nn.Module, keep: bool = False) -> list[Tensor]:
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, [hidden, *trained], retain_graph=keep, materialize_grads=True))


def accumulated(module: nn.Module) -> list[Tensor]:
    return [gather_tensor(parameter.grad) for parameter in module.parameters() if parameter.grad is not None]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = EXACT) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", [*HEADS, *LATE])
def test_gradients_are_those_of_torch(kind: type[Head]) -> None:
    hidden, labels = inputs(V if kind is NoLayer else D)
    head, other = kind(), kind()
    loss = token_loss(hidden, labels, head, V).sum
    calls = head.calls
    theirs = wanted_sum(hidden, labels, other)
    torch.testing.assert_close(loss, theirs, atol=EXACT, rtol=0)
    assert_same(gradients(loss / 4, hidden, head), gradients(theirs / 4, hidden, other))
    assert (head.calls > calls) == (kind in LATE), "whether the backward pass computes the logits again"


def test_a_loss_may_be_used_twice_and_gradients_accumulate() -> None:
    hidden, labels = inputs()
    head = Head()
    loss, theirs = token_loss(hidden, labels, head, V).sum, wanted_sum(hidden, labels, head)
    kept = gradients(loss, hidden, head, keep=True)
    assert_same(gradients(loss * 2 + loss.square(), hidden, head), gradients(theirs * 2 + theirs**2, hidden, head))
    assert_same(kept, gradients(wanted_sum(hidden, labels, head), hidden, head))
    for _ in range(3):
        (token_loss(hidden, labels, head, V).sum / 3).backward()
    assert_same(accumulated(head), kept[1:])


def test_without_gradients_nothing_is_kept() -> None:
    hidden, labels = inputs()
    with torch.no_grad():
        loss = token_loss(hidden, labels, Head(), V)
    assert not loss.sum.requires_grad
    torch.testing.assert_close(loss.sum, wanted_sum(hidden, labels, Head()).detach(), atol=EXACT, rtol=0)
    nothing_trained = token_loss(hidden.detach(), labels, Frozen(), V)
    assert not nothing_trained.sum.requires_grad


class Casts(TorchDispatchMode):
    """Counts casts of tensors of the weight's shape to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].shape == (V, D):
            self.count += kwargs["dtype"] == torch.bfloat16
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kept_by_autocast", [True, False])
def test_autocast_casts_the_weight_once(kept_by_autocast: bool) -> None:
    """Lightning turns autocast's cache off; a copy that is made before, such as of a tied table, is no harm."""
    hidden, labels = inputs()
    hidden, head = hidden.detach().float().requires_grad_(), Head().float()
    theirs = gradients(wanted_sum(hidden, labels, head), hidden, head)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept_by_autocast):
        before = head.layer(hidden).sum() * 0
        with Casts() as casts:
            loss = token_loss(hidden, labels, head, V).sum + before
            assert casts.count == 1
        assert torch.is_autocast_cache_enabled() == kept_by_autocast
        loss = loss + token_loss(hidden, labels, head, V).sum
    assert loss.dtype == torch.float32
    assert_same(gradients(loss / 2, hidden, head), theirs, ROUNDED)


def test_a_loss_in_float16_is_scaled_before_its_gradients() -> None:
    """As GradScaler needs it: gradients without the scale would vanish."""
    hidden, labels = inputs()
    hidden, head = hidden.detach().half().requires_grad_(), Head().half()
    loss = token_loss(hidden, labels, head, V).sum
    calls = head.calls
    (loss * 1024).backward()
    assert head.calls > calls


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("alone", [False, True])
def test_a_sharded_head(alone: bool) -> None:
    """Within a sharded model, and gathered for itself, where the backward pass computes the gradients."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(D, D).double(), Head()

        def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
            return token_loss(self.below(hidden), labels, self.head, V).sum

    hidden, labels = inputs()
    plain, model = Model(), Model()
    model.load_state_dict(plain.state_dict())
    if alone:
        fully_shard(model.head)
    fully_shard(model)
    for one in (plain, model):
        for _ in range(2):
            (one(hidden, labels) / 2).backward()
    assert_same(accumulated(model), accumulated(plain))
