"""trainer.deterministic: torch's settings during a training, and what they were before."""

import os

import pytest
import torch

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.training.determinism import CUBLAS, deterministic_algorithms


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
