"""The device on which a process computes, and the precision: what moves a model or makes a tensor asks here."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from fvl_lightning.core.errors import ConfigError

COMPUTE_PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""{precision: the type of autocast}; None computes in the types of the weights."""

MEMORY_SHARE = 0.7
"""Share of a GPU's memory that a model and its batch may take; the rest is for estimates that are too low."""


def compute_device(accelerator: str = "auto") -> torch.device:
    """Returns the device of this process: of several GPUs, the one with the number LOCAL_RANK.

    Args:
        accelerator: as in `trainer.accelerator`. auto takes a CUDA GPU where there is one, else the CPU.

    Raises:
        ConfigError: this machine has no such device, or fewer GPUs than processes.
    """
    gpu = _gpu() if accelerator in ("auto", "cuda") else None
    if gpu is not None:
        return gpu
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    if accelerator == "mps" and torch.backends.mps.is_available():
        return torch.device("mps")
    raise ConfigError(f"trainer.accelerator: this machine has no {accelerator} device; take auto or cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Returns the context in which a model on `device` computes with a precision, a key of COMPUTE_PRECISIONS."""
    dtype = COMPUTE_PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def device_bytes(device: torch.device) -> int | None:
    """Returns the size of a GPU's memory; None for a device whose memory is not its own."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def fitting(device: torch.device, item_bytes: int, most: int, taken: int = 0) -> int:
    """Returns how many items a batch on a device has: `most`, or fewer on a GPU that does not hold as many.

    It depends on the size of the memory, not on what is free at the moment, so that each start has the same batches.

    Args:
        device: the device of the batch.
        item_bytes: bytes of one item.
        most: the number without a limit of memory.
        taken: bytes of the model.
    """
    memory = device_bytes(device)
    return most if memory is None else max(1, min(most, int(MEMORY_SHARE * memory - taken) // item_bytes))


def release_memory() -> None:
    """Returns the GPU memory of deleted tensors to the driver, so that other processes may have it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _gpu() -> torch.device | None:
    """Returns the GPU of this process; None without one."""
    if not torch.cuda.is_available():
        return None
    rank, visible = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if rank >= visible:
        raise ConfigError(
            f"trainer.devices: {rank + 1} or more processes run on this machine, but {visible} "
            f"{'GPU is' if visible == 1 else 'GPUs are'} visible to them; set trainer.devices or CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", rank)
