"""The device of a process, with the GPUs of this machine pretended, and the precision on it."""

import pytest
import torch

from fvl_lightning.core.device import autocast, compute_device
from fvl_lightning.core.errors import ConfigError


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("accelerator", "rank", "device"),
    [
        ("auto", None, "cuda:0"), ("cuda", None, "cuda:0"), ("auto", "2", "cuda:2"), ("cuda", "3", "cuda:3"),
        ("cpu", "2", "cpu"), ("mps", "2", "mps"),
    ],
)
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, rank: str | None, device: str
) -> None:
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert compute_device(accelerator) == torch.device(device)


@pytest.mark.usefixtures("four_gpus")
def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "4")
    assert compute_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="5 or more processes run on this machine, but 4 GPUs are visible"):
        compute_device("auto")


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no CUDA GPU, the device of a Mac is taken only if it is named."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert compute_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"trainer\.accelerator: this machine has no cuda device; take auto or cpu"):
        compute_device("cuda")


def test_the_precision_of_a_product() -> None:
    device, factor = torch.device("cpu"), torch.ones(2, 2)
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        with autocast(device, precision):
            assert (factor @ factor).dtype == dtype
