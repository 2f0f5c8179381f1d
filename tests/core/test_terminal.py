"""Text of people, such as a name or a path, is written as it is: never as markup, a picture or a pattern."""

import ast
import io
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.markdown import Markdown
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fvl_lightning.core import terminal as module
from fvl_lightning.core.terminal import (
    current_activity,
    progress,
    progress_text,
    quiet_libraries,
    say,
    say_error,
    terminal,
    visible,
)

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("fvl_lightning", "datamodules") for path in (ROOT / folder).rglob("*.py"))
ODD = "runs/a[bold]b[/]c[r=8]:star:/[/nothing]"
READS_MARKUP = {"Console", "Progress", "TextColumn", "Spinner", "Status", "track", "from_markup", "print", "Prompt"}
"""What of Rich reads markup unless it is told not to; core/terminal.py does that for all."""
READS_PATTERNS = {"glob", "rglob", "iglob", "fnmatch", "fnmatchcase"}
PATTERNS_OF_PEOPLE = {"datamodules/storage/shard_paths.py", "datamodules/sources/row_files.py"}
"""Files in which a person's path may be a pattern, as their documentation says."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call, set[str]]]:
    """(name of what is called, the call, names imported from Rich) of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    rich = {alias.name for node in imports if (node.module or "").startswith("rich") for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            yield name, node, rich | ({"from_markup"} if "Text" in rich else set())


def test_only_one_file_makes_what_could_read_markup_and_no_name_is_a_pattern() -> None:
    """A pattern is written out, or is a constant; a name with [ ] in it would stand for other names."""
    markup, patterns = [], []
    for path in SOURCES:
        name_of_file = str(path.relative_to(ROOT))
        for name, node, rich in calls(path):
            place = f"{name_of_file}:{node.lineno} {name}"
            if name in READS_MARKUP & rich and path != Path(module.__file__):
                markup.append(place)
            loose = name in READS_PATTERNS and any(isinstance(part, ast.JoinedStr) for part in node.args)
            if loose and name_of_file not in PATTERNS_OF_PEOPLE:
                patterns.append(place)
    assert not markup, "take core/terminal.py instead"
    assert not patterns


def test_the_walk_finds_what_it_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from rich.console import Console\nConsole().print(1)\nfolder.glob(f'{name}*')\n", encoding="utf-8")
    found = list(calls(path))
    assert any(name in READS_MARKUP & rich for name, _, rich in found)
    assert any(name in READS_PATTERNS and isinstance(node.args[0], ast.JoinedStr) for name, node, _ in found)


def test_lines_errors_and_tables_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    say(ODD)
    say_error(ODD, " (rank 3)")
    table = Table("name", title=ODD)
    table.add_row(ODD)
    terminal().print(table)
    out, err = capsys.readouterr()
    assert out.count(ODD) == 3
    assert err == f"error (rank 3): {ODD}\n"


def test_a_bar_shows_descriptions_and_fields_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    console = terminal()
    console.file = io.StringIO()
    with progress(progress_text("fields[said]"), console=console) as bar:
        bar.add_task(ODD, said=f"said {ODD}")
        console.print(bar.get_renderable())
    assert console.file.getvalue().count(ODD) == 2


HOSTILE = "a\x1bc\x1b]0;b\x07\x9b2J\r\b\x7f\u202egnp\u2066\udc9b.json"
"""What clears a terminal, sets its title, goes back over what is written, or turns the direction of the text."""
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("on_terminal", [False, True])
def test_no_control_character_of_other_people_reaches_the_terminal(on_terminal: bool) -> None:
    """Whatever carries it: only Rich's own sequences are left, and nothing is lost without a symbol in its place."""
    console = terminal()
    console.file, console._force_terminal = io.StringIO(), on_terminal
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    for text in (HOSTILE, Text(HOSTILE, "red"), table, Panel(HOSTILE, title=HOSTILE), Syntax(HOSTILE, "yaml")):
        console.print(text)
    console.print(Markdown(HOSTILE))
    console.rule(HOSTILE)
    console.print(HOSTILE, style="bold", soft_wrap=True)
    with progress(progress_text("description"), console=console) as bar:
        bar.add_task(HOSTILE)
        bar.refresh()
    written = re.sub(r"\x1b\[[\d;?]*[mlhKA]|\r", "" if on_terminal else "?", console.file.getvalue())
    assert not CONTROL.findall(written)
    assert written.count("a\u241bc") >= 9
    assert "\u2407" in written, "Rich alone would have dropped it"


def test_messages_of_any_library_are_visible(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may have a handler of its own, as transformers has; warnings and errors of Python are messages too."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    before = root.handlers[:], root.level
    own = logging.getLogger("a_library_of_its_own")
    stream = io.StringIO()
    own.addHandler(logging.StreamHandler(stream))
    try:
        quiet_libraries()
        own.warning("loaded %s", HOSTILE)
        logging.getLogger("fvl_lightning").error(HOSTILE)
        warned = warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "a.py", 1)  # type: ignore[arg-type]
        sys.excepthook(ValueError, ValueError(HOSTILE), None)
    finally:
        logging.setLogRecordFactory(factory)
        root.handlers[:], root.level = before
    say(HOSTILE)
    say_error(HOSTILE)
    out, err = capsys.readouterr()
    assert f"ValueError: {visible(HOSTILE)}\n" in err
    for written in (stream.getvalue(), out, err, warned):
        assert not CONTROL.findall(written)
        assert "a\u241bc" in written


def test_visible_keeps_what_people_write() -> None:
    for text in ("a\tb\nc", "é 漢字 🙂 עברית العربية \u200f", "▁[bold]:star:"):
        assert visible(text) == text


def test_a_log_has_a_line_for_what_takes_long_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with current_activity() as report:
        report("soon done")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "LONG_SECONDS", 0.01)
    lines = []
    with current_activity() as report:
        for name in ("weighing [bold]", "counting"):
            report(name)
            for _ in range(3_000):
                lines += capsys.readouterr().err.splitlines()
                if lines and name in lines[-1]:
                    break
                time.sleep(0.01)
    assert lines == ["under way: weighing [bold]", "under way: counting"], "each is named once"
    assert capsys.readouterr().err == ""
