"""The operations of a step on fake tensors: what each computes, reads and writes."""

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}
"""{fused attention of a CPU: its matrix products, each of which has 2 * B * H * S * T * D operations}."""
GATHERS = {aten.index, aten.embedding, aten.index_select, aten.gather}
"""They read as much as they write, and not all of their table."""
SCATTERS = {aten.index_put, aten.index_put_, aten._index_put_impl_, aten.index_add_}
"""They write as much as they read, and not all of their target."""
FUSED_UPDATES = {aten._fused_adamw_}
FREE = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._local_scalar_dense,
}


@dataclass(frozen=True)
class Operation:
    """One kernel of a step."""

    name: str
    owner: str
    """The component that computes it, in either pass."""
    kind: str
    """matmul, attention, masked attention, gather or elementwise; the last may be fused with its neighbours."""
    narrow: bool
    """Whether it computes in bfloat16."""
    flops: int
    reads: Mapping[int, int]
    """{number of a storage: bytes of it}."""
    writes: Mapping[int, int]
    times: int = 1
    """How often a step has it: a block of the language model stands for all that are like it."""

    @property
    def bytes(self) -> int:
        """The bytes between memory and processor, each tensor once."""
        return sum(self.reads.values()) + sum(self.writes.values())


class Recorder(TorchDispatchMode):
    """Lists the operations in its context, apart from views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.owner = ""
        """The component to which the next operations belong."""
        self._numbers: dict[int, int] = {}
        self._count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        written = [*_mutated(func, args, kwargs), *_new(inputs, outputs)]
        if written and packet not in FREE:
            self.operations.append(self._operation(func, args, kwargs, result, inputs, written))
        return result

    def _operation(
        self, func: Any, args: Any, kwargs: Any, result: Any, inputs: Sequence[Tensor], written: Sequence[Tensor]
    ) -> Operation:
        packet = func._overloadpacket
        kind, flops = _work(packet, args, kwargs, result)
        reads, writes = self._sizes(_read(func, args, kwargs, inputs)), self._sizes(written)
        if packet in GATHERS:
            kind = "gather"
            reads = dict.fromkeys(reads, sum(writes.values()) // max(1, len(reads)))
        elif packet in SCATTERS:
            kind = "gather"
            values = self._sizes([tensor for tensor in inputs[1:] if tensor.is_floating_point()])
            reads, writes = values, dict.fromkeys(writes, sum(values.values()))
        narrow = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in inputs)
        return Operation(str(packet).split(".")[-1], self.owner, kind, narrow, flops, reads, writes)

    def _sizes(self, tensors: Iterable[Tensor]) -> dict[int, int]:
        """Returns {number of a storage: bytes}, at most its size however many parts of it there are."""
        found: dict[int, int] = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            number = self._number(storage)
            found[number] = min(storage.nbytes(), found.get(number, 0) + _distinct_bytes(tensor))
        return found

    def _number(self, storage: torch.UntypedStorage) -> int:
        key = storage._cdata
        if key not in self._numbers:
            self._count += 1
            self._numbers[key] = self._count
            weakref.finalize(storage, self._numbers.pop, key, None).atexit = False
        return self._numbers[key]

    def number(self, tensor: Tensor) -> int:
        """Returns the number of a tensor's storage."""
        return self._number(tensor.untyped_storage())


def _tensors(tree: Any) -> list[Tensor]:
    """Returns the tensors of a tree, each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Returns (the schema's argument, its value) for each argument of a call."""
    named = {argument.name: argument for argument in func._schema.arguments}
    return [*zip(func._schema.arguments, args, strict=False), *((named[name], value) for name, value in kwargs.items())]


def _mutated(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors that an operation changes."""
    pairs = _arguments(func, args, kwargs)
    unscaled = {"grads"} if func._overloadpacket in FUSED_UPDATES else set()  # written by a gradient scaler alone
    return _tensors([
        value for argument, value in pairs
        if argument.alias_info is not None and argument.is_write and argument.name not in unscaled
    ])  # fmt: skip


def _read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors that an operation reads; a target that is only overwritten is not one of them."""
    if func._overloadpacket in (aten.copy_, aten.fill_, aten.zero_):
        target = _mutated(func, args, kwargs)
        return [tensor for tensor in inputs if all(tensor is not one for one in target)]
    return list(inputs)


def _new(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the outputs that are no views of inputs."""
    known = {tensor.untyped_storage()._cdata for tensor in inputs}
    return [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in known]


def _distinct_bytes(tensor: Tensor) -> int:
    """Returns the bytes of a tensor's distinct elements: a dimension that is expanded counts once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return math.prod(sizes) * tensor.element_size()


def _work(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> tuple[str, int]:
    """Returns kind and operations of a call, two per multiply-add."""
    if packet in ATTENTION:
        return _attention(packet, args, kwargs)
    if packet in flop_registry:
        return "matmul", flop_registry[packet](*args, **kwargs, out_val=result)
    return "elementwise", 0


def _attention(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, int]:
    """Returns the work of fused attention: half of its products if it is causal, all of them if it has a mask."""
    values = [leaf for leaf in args if isinstance(leaf, Tensor)]
    query, key = (values[1], values[2]) if "backward" in str(packet) else (values[0], values[1])
    batch, heads, length, width = query.shape
    flops = ATTENTION[packet] * 2 * batch * heads * length * key.shape[2] * width
    causal = any(value is True for value in (*args, kwargs.get("is_causal")))
    masked = kwargs.get("attn_mask") is not None
    return "masked attention" if masked else "attention", flops // 2 if causal else flops
