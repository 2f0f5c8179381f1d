"""Fixtures of the tests of core."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from tests.core.tiny import COMPONENTS, Tiny


@pytest.fixture
def tiny_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits the registry to the components of tests/core/tiny.py during a test."""
    monkeypatch.setattr(registry, "_components", {slot: dict(known) for slot, known in COMPONENTS.items()})
    monkeypatch.setattr(registry, "_loaded", set(COMPONENTS))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Returns a function that writes a file in the test's folder and returns its path."""

    def writer(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return writer


@pytest.fixture
def load(tiny_components: None, write: Callable[[str, str], Path]) -> Callable[..., Tiny]:
    """Loads a YAML text with `key=value` overrides."""

    def loader(text: str, *overrides: str) -> Tiny:
        return load_config(Tiny, write("tiny.yaml", text), overrides)

    return loader


@pytest.fixture
def sentence(load: Callable[..., Tiny], tmp_path: Path) -> Callable[..., str]:
    """Returns the message that refuses a YAML text with overrides, without the test's folder."""

    def refused(text: Any, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert "\n" not in message, message
        assert message == message.strip()
        return message.replace(f"{tmp_path}/", "")

    return refused
