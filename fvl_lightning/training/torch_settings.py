"""torch's settings during a training: deterministic algorithms, TF32 and CUDA's memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError, first_line
from fvl_lightning.core.experiment import TrainerConfig

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
"""The variable that cuBLAS reads when CUDA starts."""
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")
"""The values of it with which cuBLAS is deterministic."""

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The variables that CUDA's allocator reads when CUDA starts; the second is the older name."""
GROWING_SEGMENTS = "expandable_segments:True"
"""Memory is mapped where it is needed, so that rows of many lengths leave no holes that no tensor fits into."""


@contextmanager
def torch_settings(config: TrainerConfig) -> Iterator[None]:
    """Has torch use the settings of a training, and restores those of before; enter it before CUDA starts.

    On a GPU `trainer.tf32` gives float32 matrix products the precision "high", and memory grows in segments unless the
    user has set the allocator; that setting is left to later trainings of the process.

    Raises:
        ConfigError: those of `deterministic_algorithms`.
    """
    on_gpu = compute_device(config.accelerator).type == "cuda"
    if on_gpu and not any(name in os.environ for name in ALLOCATOR) and not torch.cuda.is_initialized():
        os.environ[ALLOCATOR[0]] = GROWING_SEGMENTS
    precision = torch.get_float32_matmul_precision()
    if on_gpu and config.tf32 and not config.deterministic and precision == "highest":
        torch.set_float32_matmul_precision("high")
    try:
        with deterministic_algorithms(config.deterministic):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Has torch use deterministic algorithms only, and restores its settings; does nothing unless `wanted`.

    Raises:
        ConfigError: CUDA has started with other settings, or an operation has no deterministic algorithm.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.get(CUBLAS)
    if workspace not in DETERMINISTIC_WORKSPACES:
        if torch.cuda.is_initialized():
            raise ConfigError(
                f"trainer.deterministic: CUDA has already started in this process without {CUBLAS}; set it to "
                f"{DETERMINISTIC_WORKSPACES[0]} before, or take false"
            )
        os.environ[CUBLAS] = DETERMINISTIC_WORKSPACES[0]
    enabled, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ConfigError(f"trainer.deterministic: {first_line(error)}; take false") from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = workspace
