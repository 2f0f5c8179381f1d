"""Components from outside: `plugins:` with module names and .py files."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.core import plugins, registry
from fvl_lightning.core.config.loading import load_config, slot
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.plugins import (
    check_own_plugins,
    import_plugin,
    plugin_hashes,
    record_path,
    remember_plugins,
)
from tests.core.tiny import Tiny

Load = Callable[..., Tiny]
Write = Callable[[str, str], Path]

PLUGIN = """
from dataclasses import dataclass

from fvl_lightning.core.registry import register


@register("fusion", "{name}")
class {title}Fusion:
    @dataclass
    class Config:
        strength: int = 1
"""


def plugin(name: str) -> str:
    """The source of a file that registers a fusion."""
    return PLUGIN.format(name=name, title=name.title())


@pytest.fixture(autouse=True)
def _forget_modules() -> Iterator[None]:
    """What a test imports is not there for the next."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("fvl_plugin_", "my_lab")):
            del sys.modules[name]


def test_a_file_beside_the_yaml(load: Load, write: Write) -> None:
    write("mine.py", plugin("mine"))
    config = load("plugins: [mine.py]\nfusion: {name: mine, strength: 3}")
    assert config.fusion.component.__name__ == "MineFusion"
    assert config.fusion.config.strength == 3


def test_an_edited_file_is_other_code_and_is_imported_again(load: Load, write: Write) -> None:
    """As in a notebook, where the process lives on."""
    write("mine.py", plugin("mine"))
    first = load("plugins: [mine.py]\nfusion: mine")
    before = plugin_hashes(first.plugins)
    write("mine.py", plugin("mine").replace("strength: int = 1", "strength: int = 1234"))
    assert plugin_hashes(first.plugins) == before, "what was imported is what counts"
    again = load("plugins: [mine.py]\nfusion: mine")
    assert again.fusion.config.strength == 1234
    assert plugin_hashes(again.plugins).keys() == before.keys()
    assert plugin_hashes(again.plugins) != before


def test_a_file_in_the_working_directory(load: Load, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("elsewhere/mine.py", plugin("mine")).parent)
    assert load("plugins: [mine.py]\nfusion: mine").fusion.name == "mine"


def test_a_file_by_its_whole_path(load: Load, write: Write) -> None:
    path = write("elsewhere/mine.py", plugin("mine"))
    assert load("", f"plugins=[{path}]", "fusion=mine").fusion.name == "mine"


def test_a_file_beside_the_base_that_names_it(load: Load, write: Write) -> None:
    write("shared/mine.py", plugin("mine"))
    write("shared/base.yaml", "plugins: [mine.py]\nfusion: mine")
    assert load("base: shared/base.yaml").fusion.name == "mine"


def test_a_module(load: Load, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("my_lab/__init__.py", "")
    write("my_lab/fusions.py", plugin("ours"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load("plugins: [my_lab.fusions]\nfusion: ours").fusion.name == "ours"


def test_named_twice_it_is_imported_once(load: Load, write: Write) -> None:
    write("mine.py", plugin("mine"))
    first = load("plugins: [mine.py, ./mine.py]\nfusion: mine").fusion
    assert load("plugins: [mine.py]\nfusion: mine").fusion.component is first.component


def test_an_unknown_name_is_told_the_plugins_names_too(sentence: Callable[..., str], write: Write) -> None:
    write("mine.py", plugin("mine"))
    assert sentence("plugins: [mine.py]\nfusion: mines") == (
        "fusion in tiny.yaml: unknown fusion 'mines', allowed: gated, mean, mine; did you mean 'mine'?"
    )


MISTAKES = [
    ("plugins: [no.py]", "plugins: no file no.py in FOLDER or the working directory"),
    ("plugins: [my_lab.no]", "plugins: my_lab.no could not be imported: ModuleNotFoundError: No module named 'my_lab'"),
    ("plugins: {a: mine.py}", "plugins in tiny.yaml: expected a list, found {'a': 'mine.py'}"),
    ("plugins: [broken.py]", "plugins: broken.py could not be imported: SyntaxError: '(' was never closed"),
    ("plugins: [raises.py]", "plugins: raises.py could not be imported: RuntimeError: first line"),
    ("plugins: [taken.py]", "plugins: taken.py could not be imported: fusion 'gated' is already"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_plugin_that_cannot_be_had(
    sentence: Callable[..., str], write: Write, tmp_path: Path, text: str, expected: str
) -> None:
    write("mine.py", plugin("mine"))
    write("broken.py", "x = (")
    write("raises.py", "raise RuntimeError('first line\\nsecond line')")
    write("taken.py", plugin("gated"))
    assert sentence(text).startswith(expected.replace("FOLDER", str(tmp_path)))


def test_a_plugin_that_failed_may_be_mended(load: Load, sentence: Callable[..., str], write: Write) -> None:
    write("mine.py", "raise RuntimeError")
    assert "RuntimeError" in sentence("plugins: [mine.py]")
    write("mine.py", "import os  # longer than before\n" + plugin("mine"))
    assert load("plugins: [mine.py]\nfusion: mine").fusion.name == "mine"


@dataclass
class OneFusion:
    """A schema over the kit's own fusions."""

    fusion: Any = slot("fusion")
    plugins: list[str] = field(default_factory=list)


def test_a_plugin_that_takes_a_shipped_name_is_the_one_to_blame(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names("fusion")  # so that the kit's own are registered for the tests after this one too
    monkeypatch.setattr(registry, "_components", {slot: dict(known) for slot, known in registry._components.items()})
    write("mine.py", plugin("gated").replace("class GatedFusion", "class MyFusion"))
    with pytest.raises(ConfigError, match=r"plugins: mine\.py could not be imported: .*'gated' is already"):
        load_config(OneFusion, write("a.yaml", "plugins: [mine.py]\nfusion: mean"))


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An account that has trained nothing yet, and a process that has imported no plugin."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(plugins, "_given", set())
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    (tmp_path / "my_lab" / "fusions.py").write_text(plugin("lab"), encoding="utf-8")
    (tmp_path / "mine.py").write_text(plugin("mine"), encoding="utf-8")
    return tmp_path


def test_a_run_of_a_stranger_imports_nothing(account: Path) -> None:
    for name in (str(account / "mine.py"), "my_lab", "my_lab.fusions"):
        with pytest.raises(ConfigError, match="no training on this account has used this code") as refused:
            check_own_plugins([name], "runs/theirs")
        assert str(refused.value).startswith(f"runs/theirs imports the plugin {name}, and ")
        assert f"`--plugins {name}`" in str(refused.value)
    assert "my_lab" not in sys.modules
    for nothing in (None, [], 3, ["no_such_module", "no/such.py", "sys", 3]):
        check_own_plugins(nothing, "runs/theirs")


def test_code_that_a_training_has_used_is_ones_own_until_it_is_edited(account: Path) -> None:
    file = account / "mine.py"
    remember_plugins(plugin_hashes([str(file)]).items())
    check_own_plugins([str(file)], "runs/mine")
    moved = file.rename(account / "moved.py")
    check_own_plugins([str(moved)], "runs/mine")
    with record_path().open("ab") as record:
        record.write(b"3\n{}\nhalf a li")
    check_own_plugins([str(moved)], "runs/mine")
    moved.write_text(plugin("another"), encoding="utf-8")
    with pytest.raises(ConfigError, match="imports the plugin"):
        check_own_plugins([str(moved)], "runs/mine")
    import_plugin(str(moved), account)  # as a command does with what --plugins names
    check_own_plugins([str(moved)], "runs/mine")


def test_a_record_that_cannot_be_written_is_a_warning(account: Path, caplog: pytest.LogCaptureFixture) -> None:
    (account / "state").write_text("a file", encoding="utf-8")
    remember_plugins([("mine.py", "0123")])
    assert "plugins.jsonl cannot be written" in caplog.text
