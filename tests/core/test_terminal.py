"""Text of people, such as a name or a path, is written as it is: never as markup, a picture or a pattern."""

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from fvl_lightning.core import terminal as module
from fvl_lightning.core.terminal import progress, progress_text, say, say_error, terminal

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("fvl_lightning", "datamodules") for path in (ROOT / folder).rglob("*.py"))
ODD = "runs/a[bold]b[/]c[r=8]:star:/[/nothing]"
READS_MARKUP = {"Console", "Progress", "TextColumn", "Spinner", "Status", "track", "from_markup", "print", "Prompt"}
"""What of Rich reads markup unless it is told not to; core/terminal.py does that for all."""
READS_PATTERNS = {"glob", "rglob", "iglob", "fnmatch", "fnmatchcase"}
PATTERNS_OF_PEOPLE = {"datamodules/storage/shard_paths.py", "datamodules/sources/files.py"}
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


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_only_one_file_makes_what_could_read_markup(path: Path) -> None:
    if path == Path(module.__file__):
        return
    made = [f"{name} in line {node.lineno}" for name, node, rich in calls(path) if name in READS_MARKUP & rich]
    assert not made, "take core/terminal.py instead"


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_name_is_a_pattern(path: Path) -> None:
    """A pattern is written out, or is a constant; a name with [ ] in it would stand for other names."""
    if str(path.relative_to(ROOT)) in PATTERNS_OF_PEOPLE:
        return
    patterns = [node for name, node, _ in calls(path) if name in READS_PATTERNS]
    loose = [f"line {node.lineno}" for node in patterns if any(isinstance(part, ast.JoinedStr) for part in node.args)]
    assert not loose


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
