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
    """A registry that holds the components of tests/core/tiny.py and nothing else, until the test is over."""
    monkeypatch.setattr(registry, "_components", {slot: dict(known) for slot, known in COMPONENTS.items()})
    monkeypatch.setattr(registry, "_loaded", set(COMPONENTS))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file under the test's own folder and gives its path."""

    def writer(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return writer


@pytest.fixture
def load(tiny_components: None, write: Callable[[str, str], Path]) -> Callable[..., Tiny]:
    """Loads the YAML text, with `key=value` words behind it."""

    def loader(text: str, *overrides: str) -> Tiny:
        return load_config(Tiny, write("tiny.yaml", text), overrides)

    return loader


@pytest.fixture
def sentence(load: Callable[..., Tiny], tmp_path: Path) -> Callable[..., str]:
    """The one sentence in which a YAML text and its words are refused, with the test's folder taken out."""

    def refused(text: Any, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert "\n" not in message, message
        assert message == message.strip()
        return message.replace(f"{tmp_path}/", "")

    return refused
