"""The seconds of an operation on a device: the larger of its arithmetic and its memory traffic."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.roofline.operations import Operation
from fvl_lightning.profiling.devices import named_device


@dataclass(frozen=True)
class Ceilings:
    """The most that a device reaches in practice, in operations or bytes a second. They are assumptions."""

    name: str
    peak: float
    """The published dense bfloat16 peak, by which MFU divides."""
    memory: float
    """Bytes of the device."""
    matmul: float
    matmul_float32: float
    bandwidth: float
    attention: float
    """Forward pass of flash attention without a mask (causal or by document)."""
    attention_backward: float
    masked: float
    """Forward pass of the memory-efficient kernel, which a dense mask needs."""
    masked_backward: float
    cudnn: float
    """How many times as fast cuDNN's attention is as flash attention 2."""
    link: float
    """Bytes a second that a device receives from the others of its machine."""
    network: float
    """The same from other machines."""


MATMUL, MATMUL_FLOAT32, BANDWIDTH = 670 / 989, 50 / 67, 3.87 / 4.8
ATTENTION, ATTENTION_BACKWARD, MASKED, MASKED_BACKWARD = 380 / 989, 300 / 989, 170 / 989, 110 / 989
"""Shares of the published peaks that the H200 is assumed to reach; other devices get the same shares."""
PUBLISHED = {
    "a100-40gb": (1.555, 300, 1.0), "a100-80gb": (2.039, 300, 1.0), "h100": (3.35, 450, 1.7), "h200": (4.8, 450, 1.7),
}  # fmt: skip
"""{device: (10^12 bytes a second of its memory, 10^9 of NVLink in one direction, speed of cuDNN's attention)}. NVIDIA
publishes the first two; the last is the lower end of what transformers' pull request 48163 measured on Hopper."""
LINK, NETWORK = 350 / 450, 45e9
"""Share of NVLink that collectives reach, and bytes a second of a network adapter of 400 Gbit/s for each device."""


def ceilings(name: str) -> Ceilings:
    """Returns the assumed ceilings of a GPU; ConfigError for an unknown name, KeyError for one without a bandwidth."""
    device = named_device(name)
    memory, link, cudnn = PUBLISHED[device.name]
    peak, float32 = device.bfloat16 or 0.0, device.float32 or 0.0
    return Ceilings(
        device.name, peak, device.memory or 0, MATMUL * peak, MATMUL_FLOAT32 * float32, BANDWIDTH * memory * 1e12,
        ATTENTION * peak, ATTENTION_BACKWARD * peak, MASKED * peak, MASKED_BACKWARD * peak, cudnn,
        LINK * link * 1e9, NETWORK,
    )  # fmt: skip


def seconds(operation: Operation, device: Ceilings, cudnn: bool = False) -> float:
    """Returns the time of an operation.

    Args:
        operation: the operation.
        device: its ceilings.
        cudnn: whether attention without a mask takes cuDNN's kernels.
    """
    return max(operation.flops / _rate(operation, device, cudnn), operation.bytes / device.bandwidth)


def total(operations: Iterable[Operation], device: Ceilings, cudnn: bool = False) -> float:
    """Returns the time of operations, one after the other."""
    return sum(operation.times * seconds(operation, device, cudnn) for operation in operations)


def _rate(operation: Operation, device: Ceilings, cudnn: bool) -> float:
    backward = operation.name.endswith("_backward")
    if operation.kind == "masked attention":
        return device.masked_backward if backward else device.masked
    if operation.kind == "attention":
        return (device.attention_backward if backward else device.attention) * (device.cudnn if cudnn else 1)
    return device.matmul if operation.narrow else device.matmul_float32
