"""A fake training step: it runs on torch's fake tensors, and counts every byte that a real step would allocate.

Floating-point tensors have shapes but no values. Integer tensors of a batch, which hold the positions of images and the
supervised tokens, are real, so that the model takes the same branches as in training.
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

from fvl_lightning.core.experiment import Kept
from fvl_lightning.training.distributed.block_transforms import checkpoint_activations

T = TypeVar("T")


class Allocations(TorchDispatchMode):
    """Counts the live bytes of all storages that are created in its context, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.by_owner: Counter[str] = Counter()
        """Live bytes by the value of `owner` at their allocation."""
        self.owner = ""
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Does not count the storages of existing tensors."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def restart(self) -> None:
        """Starts a new measurement of the peak."""
        self.peak = self.live

    def _add(self, storage: torch.UntypedStorage) -> None:
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


class RealIntegers(TorchDispatchMode):
    """Computes integer and boolean tensors for real, on top of a mode with fake tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if fakes else _run_for_real(func, args, kwargs)  # the step count of an optimiser
        if fakes:
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], _nonzero_indices(args[1]))
            return func(*args, **kwargs)
        if tensors and not any(tensor.is_floating_point() for tensor in tensors) and not _is_floating_dtype(kwargs):
            result = _run_for_real(func, args, kwargs)
            return result if not _has_floating(result) else func(*args, **kwargs)
        result = func(*args, **kwargs)
        return result if tensors or _has_floating(result) else _run_for_real(func, args, kwargs)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Makes all new tensors fake, except integer and boolean tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True), RealIntegers():
        yield


@contextmanager
def without_values(model: nn.Module, in_bfloat16: Set[Tensor] = frozenset()) -> Iterator[None]:
    """Replaces the parameters and buffers of `model`, on any device, by fake tensors; use it within `fake_tensors`.

    Args:
        model: the model, restored at the end.
        in_bfloat16: the parameters whose fake tensors are bfloat16.

    A routed fusion gets all sources, as if every image needed each of them.
    """
    originals = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    fakes: dict[Tensor, Any] = {}

    def fake_of(tensor: Tensor) -> Any:
        if tensor not in fakes:
            dtype = torch.bfloat16 if tensor in in_bfloat16 else tensor.dtype
            fake = torch.empty(tensor.shape, dtype=dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[tensor] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
        return fakes[tensor]

    routing: list[Any] = [module for module in model.modules() if hasattr(module, "computes_all_sources")]
    try:
        for module in routing:  # a route is a value
            module.computes_all_sources = True
        for module, parameters, buffers in originals:
            for current, before in ((module._parameters, parameters), (module._buffers, buffers)):
                current.update({name: fake_of(tensor) for name, tensor in before.items() if tensor is not None})
        yield
    finally:
        for module in routing:
            module.computes_all_sources = False
        for module, parameters, buffers in originals:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


@contextmanager
def track_owners(
    model: nn.Module, allocations: Allocations, otherwise: str, names: Mapping[str, str]
) -> Iterator[None]:
    """Sets the owner of `allocations` during forward passes.

    Args:
        model: the model.
        allocations: the counter.
        otherwise: the owner outside of the children's forward passes.
        names: {child of the model: owner during its forward pass}.
    """
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


@contextmanager
def recompute_activations(modules: Iterable[nn.Module], keep: Kept = "inputs") -> Iterator[None]:
    """Checkpoints the activations of these modules, unless they are checkpointed already; restores them at the end.

    Args:
        modules: the modules.
        keep: as in `checkpoint_activations`.
    """
    chosen = [module for module in modules if "forward" not in vars(module)]
    checkpoint_activations(chosen, keep)
    try:
        yield
    finally:
        for module in chosen:
            del module.forward


def _run_for_real(func: Callable[..., T], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> T:
    kwargs = {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _has_floating(result: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_flatten(result)[0])


def _is_floating_dtype(kwargs: Mapping[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    return dtype is not None and dtype.is_floating_point


def _nonzero_indices(indices: Any) -> list[Any]:
    """Replaces boolean masks by the indices of their nonzero elements, whose number is known since masks are real."""
    converted: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            with unset_fake_temporarily():
                converted += list(index.nonzero(as_tuple=True))
        else:
            converted.append(index)
    return converted
