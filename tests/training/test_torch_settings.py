"""trainer.deterministic, trainer.tf32: torch's settings during a training, and what they were before."""

import os

import pytest
import torch

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training import torch_settings as module
from fvl_lightning.training.torch_settings import ALLOCATOR, CUBLAS, deterministic_algorithms, torch_settings


def settings() -> tuple[bool, bool, str | None]:
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, os.environ.get(CUBLAS)


@pytest.mark.parametrize("workspace", [None, ":16:8", ":0:0"])
def test_settings_are_those_of_the_training_and_are_restored(
    workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if workspace:
        monkeypatch.setenv(CUBLAS, workspace)
    before = settings()
    with deterministic_algorithms(False):
        assert settings() == before
    with deterministic_algorithms(True):
        assert settings() == (True, False, ":16:8" if workspace == ":16:8" else ":4096:8")
    assert settings() == before == (False, True, workspace)


def test_an_operation_without_a_deterministic_algorithm_is_one_sentence() -> None:
    sentence = r"^trainer\.deterministic: put_ does not have a deterministic .*; take false$"
    with pytest.raises(ConfigError, match=sentence), deterministic_algorithms(True):
        torch.zeros(3).put_(torch.tensor([1]), torch.tensor([2.0]))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), deterministic_algorithms(True):
        raise RuntimeError("something else")


def test_cuda_that_has_started_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    sentence = "CUDA has already started .* without CUBLAS_WORKSPACE_CONFIG; set it to :4096:8"
    with pytest.raises(ConfigError, match=sentence), deterministic_algorithms(True):
        pass
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("fields", [{}, {"tf32": False}, {"deterministic": True}], ids=str)
def test_float32_is_multiplied_in_tf32_on_a_gpu_only(
    device: str, fields: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compute_device", lambda accelerator: torch.device(device))
    monkeypatch.setenv(ALLOCATOR[0], "")
    with torch_settings(TrainerConfig(**fields)):
        wanted = "high" if device == "cuda" and not fields else "highest"
        assert torch.get_float32_matmul_precision() == wanted
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("own", [None, *ALLOCATOR])
@pytest.mark.parametrize(("device", "started"), [("cuda", False), ("cuda", True), ("cpu", False)])
def test_memory_grows_in_segments_unless_the_user_has_set_the_allocator(
    own: str | None, device: str, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compute_device", lambda accelerator: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    with torch_settings(TrainerConfig()):
        found = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    set_here = {ALLOCATOR[0]: "expandable_segments:True"} if device == "cuda" and not started else {}
    assert found == ({own: "max_split_size_mb:64"} if own else set_here)
