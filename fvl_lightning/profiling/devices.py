"""Speed and memory of devices: this machine's, and those of GPUs that are named.

The table has the numbers of NVIDIA's data sheets: matrix products without sparsity, bfloat16 on tensor cores with
float32 sums, float32 without TF32 (`trainer.tf32: false`), so that hours of float32 are too many with it.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from fvl_lightning.core.errors import unknown_name

SUSTAINED = 0.3
"""Share of the published peak that a training step is assumed to sustain. An assumption, not a measurement: small
models and short rows stay below it."""
CPU = "CPU"
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Gpu:
    """Published peaks of a GPU in 10^12 operations a second, and its memory in 10^9 bytes."""

    bfloat16: float
    float32: float
    memory_gb: float


GPUS = {
    "a10": Gpu(125, 31.2, 24),
    "a100-40gb": Gpu(312, 19.5, 40),
    "a100-80gb": Gpu(312, 19.5, 80),
    "h100": Gpu(989, 67, 80),
    "h200": Gpu(989, 67, 141),
    "l4": Gpu(121, 30.3, 24),
    "l40s": Gpu(362, 91.6, 48),
    "rtx3090": Gpu(71, 35.6, 24),
    "rtx4090": Gpu(165, 82.6, 24),
    "rtxa6000": Gpu(155, 38.7, 48),
}
"""{name: its numbers}; h100 and h200 are the SXM modules."""


@dataclass(frozen=True)
class Device:
    """A device that trains: its name, its memory in bytes, and its peaks in operations a second, where known."""

    name: str
    memory: int | None
    bfloat16: float | None
    float32: float | None
    here: bool
    """Whether it is a device of this machine, on which steps can be measured."""

    @property
    def is_cpu(self) -> bool:
        """Returns whether it is this machine's processor, whose memory all cells share."""
        return self.name == CPU

    def speed(self, precision: str) -> float | None:
        """Returns the operations a second that training is assumed to sustain in a precision; None where not known."""
        peak = self.bfloat16 if precision == "bf16-mixed" else self.float32
        return None if peak is None else SUSTAINED * peak


def named_device(name: str) -> Device:
    """Returns a GPU of the table; ConfigError for a name that it does not have."""
    if name.lower() not in GPUS:
        raise unknown_name("GPU", name, GPUS, "--device")
    gpu = GPUS[name.lower()]
    return Device(name.lower(), int(gpu.memory_gb * 1e9), gpu.bfloat16 * 1e12, gpu.float32 * 1e12, here=False)


def device_here(accelerator: str = "auto") -> Device:
    """Returns the device that a training on this machine takes; a CPU has no published peak.

    Args:
        accelerator: `trainer.accelerator` of the training.
    """
    if accelerator in ("auto", "cuda") and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = _gpu_called(properties.name, properties.total_memory)
        bfloat16, float32 = (None, None) if gpu is None else (gpu.bfloat16 * 1e12, gpu.float32 * 1e12)
        return Device(properties.name, properties.total_memory, bfloat16, float32, here=True)
    return Device(CPU, free_main_memory(), None, None, here=True)


def free_main_memory() -> int | None:
    """Returns the bytes of main memory that a new process can have, within a container's limit; None if unknown."""
    free = [_available()]
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text(encoding="utf-8"))  # "max" without a limit
        used = int((CGROUP / "memory.current").read_text(encoding="utf-8"))
        free.append(max(0, limit - used + _reclaimable()))
    known = [size for size in free if size is not None]
    return min(known, default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _reclaimable() -> int:
    """Returns the bytes of cached files that count as used by the container, and are given back when needed."""
    for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _gpu_called(name: str, memory: int) -> Gpu | None:
    """Returns the entry of a GPU by the name that its driver gives: NVIDIA A100-SXM4-80GB, NVIDIA GeForce RTX 4090."""
    words = [word for word in name.lower().replace("-", " ").split() if word not in ("nvidia", "geforce")]
    if words[:1] == ["a100"]:
        return GPUS["a100-80gb" if memory > 60e9 else "a100-40gb"]
    if not words or {"pcie", "nvl", "laptop", "d"} & set(words[1:]):
        return None  # slower than the one of the table
    return GPUS.get(words[0]) or GPUS.get("".join(words[:2]))
