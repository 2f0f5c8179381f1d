"""A device that is not the CPU, for tests: `pretend:0`, whose tensors hold their values in main memory.

It is torch's backend for other people's devices (PrivateUse1). A tensor on it is a DeviceTensor, a wrapper around a
tensor of the CPU, and each operation runs on the tensors inside. As on a GPU, an operation on tensors of two devices is
an error, unless a tensor of the CPU has a single value, is an index, or is copied.

What it cannot see: memory, streams and events (a copy is finished when it returns), pinned memory, autocast (torch has
no list of operations for this device), fused kernels and compiling, several devices in one process, and operations in
which CUDA itself is stricter or more lenient than these rules.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.backend_registration
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "pretend"
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""Operations that take tensors of two devices."""
INDEXED = {
    torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default,
    torch.ops.aten._unsafe_index.Tensor, torch.ops.aten._index_put_impl_.default,
}  # fmt: skip
"""Operations whose indices may be on the CPU."""


class DeviceTensor(Tensor):
    """A tensor on the pretended device; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        wrapper = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device(),
        )  # fmt: skip
        wrapper.held = held
        return wrapper

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], meta: None, size: Any, stride: Any) -> "DeviceTensor":
        return DeviceTensor(inner["held"])

    def tolist(self) -> Any:
        """Copies the values; torch does this for no subclass of Tensor."""
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"on {NAME}: {self.held}"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_flatten((args, kwargs))[0]
        wrapped = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        if func not in MOVES:
            checked = tree_flatten((args[:1] if func in INDEXED else args, kwargs))[0]
            if any(isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor) and leaf.ndim for leaf in checked):
                raise RuntimeError(f"Expected all tensors to be on the same device, found {device()} and cpu in {func}")
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        stays = target is None or torch.device(target).type == NAME
        if func is torch.ops.aten.copy_.default:
            stays = isinstance(args[0], DeviceTensor)
        if func is torch.ops.aten._fused_sdp_choice.default:
            return 0  # plain matrix products
        inside = {id(one.held): one for one in wrapped}
        result = func(*_held(args), **_held(kwargs))
        if not stays:
            return result if id(result) not in inside else result.clone()
        return tree_map_only(Tensor, lambda one: inside[id(one)] if id(one) in inside else DeviceTensor(one), result)


class _Backend(torch.utils.backend_registration._DummyBackendModule):
    """The module torch.pretend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def device() -> torch.device:
    return torch.device(NAME, 0)


def _held(tree: Any) -> Any:
    return tree_map_only(DeviceTensor, lambda one: one.held, tree)


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Any:
    return DeviceTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Any:
    return DeviceTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


def _made_on_the_cpu(factory: Any) -> Any:
    return lambda *args, device=None, **how: DeviceTensor(factory(*args, device="cpu", **how))


def register() -> None:
    """Registers the device with torch, once and for the life of this process; every accelerator becomes this one."""
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    torch.library.impl("aten::empty.memory_format", "PrivateUse1", _empty)
    torch.library.impl("aten::empty_strided", "PrivateUse1", _empty_strided)
    torch.library.impl("aten::_copy_from", "PrivateUse1", _copy_from)
    for name in ("arange", "linspace", "eye", "randperm"):  # torch makes them by enlarging an empty tensor
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if "out" not in overload and not overload.startswith("generator"):
                qualified = f"aten::{name}" if overload == "default" else f"aten::{name}.{overload}"
                torch.library.impl(qualified, "PrivateUse1", _made_on_the_cpu(getattr(packet, overload)))
    torch.accelerator.synchronize = lambda *_: None  # a guard in Python has no streams to wait for
    torch.__future__.set_swap_module_params_on_conversion(True)  # or tied parameters would be separated
