"""Components read from their source files: equal to the imported ones, and imported where a text does not answer."""

import dataclasses
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.component_sources import components as reader
from fvl_lightning.core.component_sources.components import ConfigReader, component_sources, summaries
from fvl_lightning.core.component_sources.modules import SourceModule, Unreadable
from fvl_lightning.core.config.field_docs import field_meanings
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import SLOT_PACKAGES

COMPONENTS = [(slot, name) for slot in SLOT_PACKAGES for name in registry.names(slot)]
PLUGIN = """
import torch
from dataclasses import dataclass, field

from fvl_lightning.core.registry import register

SIZES = [1, 2]


def check(size):
    if size not in SIZES:
        raise ValueError(f"size: {size} is none of {SIZES}")


@register("fusion", "mine")
class Mine(torch.nn.Module):
    @dataclass
    class Config:
        size: int = 1
        kind: str = field(default_factory=lambda: str(torch.float32))

        def __post_init__(self):
            check(self.size)
"""


def outline(config: Any) -> dict[str, Any]:
    """All that a check of a configuration reads of a Config, and of the dataclasses in its fields."""
    hints = get_type_hints(config, include_extras=True)
    found: dict[str, Any] = {"meanings": field_meanings(config), "doc": inspect.getdoc(config)}
    for field in dataclasses.fields(config):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        inner = [outline(one) for one in getattr(hints[field.name], "__args__", ()) if dataclasses.is_dataclass(one)]
        metadata = {key: inspect.getsource(one) if callable(one) else one for key, one in field.metadata.items()}
        found[field.name] = (default, metadata, inner or (field.type, hints[field.name]))
    return found


@pytest.mark.parametrize(("slot", "name"), COMPONENTS)
def test_a_source_file_says_what_the_imported_component_is(slot: str, name: str) -> None:
    read, imported = component_sources(slot)[name], registry.component(slot, name)
    assert read.qualified_name == f"{imported.__module__}.{imported.__qualname__}"
    assert read.docstring == inspect.getdoc(imported)
    assert read.config is not imported.Config
    assert read.config.__qualname__ == imported.Config.__qualname__
    assert outline(read.config) == outline(imported.Config)


@pytest.mark.parametrize("slot", SLOT_PACKAGES)
def test_the_source_files_have_every_component(slot: str) -> None:
    assert list(component_sources(slot)) == registry.names(slot)


def test_a_plugin_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    config = ConfigReader(["mine.py"], tmp_path)("fusion", "mine", "fusion")
    with pytest.raises(ValueError, match="3 is none of"):
        config(size=3, kind="")
    with pytest.raises(NameError):  # torch is not imported for it, so that the plugin will be
        config()


def test_a_config_may_have_that_of_another_component_as_its_base(tmp_path: Path) -> None:
    child = (
        '\n\n@register("fusion", "child")\nclass Child(Mine):\n    @dataclass\n    class Config(Mine.Config):\n'
        "        more: int = 1\n"
    )
    (tmp_path / "mine.py").write_text(PLUGIN + child, encoding="utf-8")
    before = registry.registered("fusion")
    config = ConfigReader(["mine.py"], tmp_path)("fusion", "child", "fusion")
    assert [field.name for field in dataclasses.fields(config)] == ["size", "kind", "more"]
    assert registry.registered("fusion") == before


@pytest.mark.parametrize("change", ["from __future__ import annotations\n{}", "for name in ('a', 'mine'): {}"])
def test_what_the_text_does_not_answer_is_unreadable(tmp_path: Path, change: str) -> None:
    text = change.format(PLUGIN) if "future" in change else "register = print\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(Unreadable):
        ConfigReader(["mine.py"], tmp_path)("fusion", "mine", "fusion")


def test_a_constant_of_a_library_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from torch import float32\nKIND = float32\nSIZE = 1\nSIZE += 1\n", encoding="utf-8")
    module = SourceModule("a", tmp_path / "a.py")
    assert module.value("SIZE") == 2
    with pytest.raises(Unreadable):
        module.value("KIND")
    with pytest.raises(Unreadable):
        module.value("OTHER")


def test_entry_points_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = EntryPoint("mine", "fvl_lightning.fusions.gated:GatedFusion", "fvl_lightning.fusion")
    monkeypatch.setattr(reader, "entry_points", lambda group: [mine])
    component_sources.cache_clear()
    try:
        with pytest.raises(Unreadable, match="entry points"):
            component_sources("fusion")
        assert summaries("fusion")["gated"].config is registry.component("fusion", "gated").Config
    finally:
        component_sources.cache_clear()


def test_an_unknown_name_is_refused_as_by_the_registry() -> None:
    with pytest.raises(ConfigError) as read:
        ConfigReader([], Path())("fusion", "gatted", "fusion in a.yaml")
    with pytest.raises(ConfigError) as imported:
        registry.component("fusion", "gatted", "fusion in a.yaml")
    assert str(read.value) == str(imported.value)


def test_summaries_refuse_an_unknown_slot() -> None:
    with pytest.raises(ConfigError, match=r"unknown slot 'fusions'.*did you mean 'fusion'"):
        summaries("fusions")


def test_a_component_that_is_registered_already_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine:
        @dataclasses.dataclass
        class Config:
            pass

    monkeypatch.setitem(registry._components["fusion"], "of_a_notebook", Mine)
    lookup: Callable[..., Any] = ConfigReader([], Path())
    assert lookup("fusion", "of_a_notebook", "fusion") is Mine.Config
