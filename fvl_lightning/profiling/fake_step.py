"""A training step on tensors without values, in which every byte that would be allocated is counted.

Everything with a weight in it is a shape (torch's fake tensors); the whole numbers of a batch, which say where images
stand and what is supervised, are real, so that the model takes the branches that it takes in training.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

T = TypeVar("T")


class Allocations(TorchDispatchMode):
    """The bytes of all storages that are made and not yet freed in its context, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.by_owner: Counter[str] = Counter()
        """Live bytes by what `owner` was when they were allocated."""
        self.owner = ""
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return result

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leaves out what was there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def restart(self) -> None:
        """Measures the peak from now on."""
        self.peak = self.live

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size, owner = storage._cdata, storage.nbytes(), self.owner
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.by_owner[owner] += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size, owner).atexit = False

    def _release(self, key: int, size: int, owner: str) -> None:
        self._known.discard(key)
        self.live -= size
        self.by_owner[owner] -= size


class WholeNumbersAreReal(TorchDispatchMode):
    """Beneath it fake tensors; on top of them this computes whole numbers and truth values for real."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if fakes else _for_real(func, args, kwargs)  # an optimiser's count of its steps
        if fakes:
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], _places(args[1]))
            return func(*args, **kwargs)
        if tensors and not any(tensor.is_floating_point() for tensor in tensors) and not _makes_fractions(kwargs):
            result = _for_real(func, args, kwargs)
            return result if not _floating(result) else func(*args, **kwargs)
        result = func(*args, **kwargs)
        return result if tensors or _floating(result) else _for_real(func, args, kwargs)


@contextmanager
def rehearsed() -> Iterator[None]:
    """Within it every new tensor is a shape, but for whole numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True), WholeNumbersAreReal():
        yield


@contextmanager
def without_values(model: nn.Module, in_bfloat16: Set[Tensor] = frozenset()) -> Iterator[None]:
    """Within `rehearsed`: `model` with shapes in place of its parameters and buffers, on whatever device they are.

    Those of `in_bfloat16` have that type within.
    """
    kept = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    made: dict[Tensor, Any] = {}

    def shape_of(tensor: Tensor) -> Any:
        if tensor not in made:
            dtype = torch.bfloat16 if tensor in in_bfloat16 else tensor.dtype
            fake = torch.empty(tensor.shape, dtype=dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
        return made[tensor]

    try:
        for module, parameters, buffers in kept:
            for held, before in ((module._parameters, parameters), (module._buffers, buffers)):
                held.update({name: shape_of(tensor) for name, tensor in before.items() if tensor is not None})
        yield
    finally:
        for module, parameters, buffers in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


@contextmanager
def owners_told(model: nn.Module, allocations: Allocations, otherwise: str, names: Mapping[str, str]) -> Iterator[None]:
    """Has `allocations` know whose forward pass it is: `names` of the model's children, `otherwise` outside of them."""
    allocations.owner = otherwise
    handles: list[Any] = []

    def enter(owner: str) -> Callable[..., None]:
        return lambda *_: setattr(allocations, "owner", owner)

    for name, child in model.named_children():
        handles.append(child.register_forward_pre_hook(enter(names[name])))
        handles.append(child.register_forward_hook(enter(otherwise)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _for_real(func: Callable[..., T], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> T:
    kwargs = {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _floating(result: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_flatten(result)[0])


def _makes_fractions(kwargs: Mapping[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    return dtype is not None and dtype.is_floating_point


def _places(indices: Any) -> list[Any]:
    """Indices without masks: how many places a mask leaves is known where it is real."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            with unset_fake_temporarily():
                found += list(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found
