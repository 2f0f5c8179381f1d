"""The peak memory of a training, on the device of its trainer."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

PEAK_RESIDENT = "VmHWM:"
"""The line of /proc/self/status with the peak resident memory, which can be reset, unlike that of getrusage."""


def reset_peak_memory(device: torch.device) -> None:
    """Makes the peak begin anew from what is held now; where the system cannot, the peak is that of the process."""
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or one that forbids it
        handle = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(handle, b"5")  # the kernel's number for this peak
        finally:
            os.close(handle)


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak memory since the last reset: allocated on an accelerator, resident on a CPU.

    An accelerator that does not count (mps) counts as a CPU.
    """
    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(PEAK_RESIDENT):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
