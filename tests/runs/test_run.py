"""The end of a training: what is checked before the model is saved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.runs.run import finish


def ended(mode: str, saved: list[Path]) -> Any:
    """Returns a stage whose encoder has the weights [1, 2] and trains as `mode` says."""
    encoder = SimpleNamespace(feature_state=lambda: {"weight": torch.tensor([1.0, 2.0])})
    return SimpleNamespace(
        model=SimpleNamespace(encoder=encoder), trainable={"encoder": mode}, save_model=lambda path: saved.append(path)
    )


def run_with(weights: list[float], folder: Path) -> Any:
    """Returns a run whose encoder had these weights when it began."""
    info = {"encoder_hash": weights_hash({"weight": torch.tensor(weights)})}
    return SimpleNamespace(info=info, model=folder, record=lambda **facts: info.update(facts))


def test_a_frozen_encoder_that_has_changed_is_an_error(tmp_path: Path) -> None:
    saved: list[Path] = []
    with pytest.raises(DataError, match="the encoder is frozen, but its weights have changed"):
        finish(ended("frozen", saved), run_with([1.0, 2.5], tmp_path))
    assert not saved
    finish(ended("frozen", saved), run_with([1.0, 2.0], tmp_path))
    trained = run_with([1.0, 2.5], tmp_path)
    finish(ended("full", saved), trained)
    assert len(saved) == 2
    assert trained.info["encoder_hash"] == run_with([1.0, 2.0], tmp_path).info["encoder_hash"], "it is recorded"
