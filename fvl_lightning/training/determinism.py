"""torch's deterministic algorithms, for a training that asks for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fvl_lightning.core.errors import ConfigError, first_line

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
"""The variable that cuBLAS reads when CUDA starts."""
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")
"""The values of it with which cuBLAS is deterministic."""


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
