"""docs/explain.md: it has every section, says when each misleads, and its options and small pictures are there."""

import inspect
import re

from fvl_lightning.attribution.report import FILES
from fvl_lightning.attribution.request import FOLDER, QUESTIONS, REPLACEMENTS, SECTIONS
from fvl_lightning.cli.explain import explain
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
PICTURE_BYTES = 100_000


def test_every_section_has_a_part_that_says_when_it_misleads() -> None:
    named = re.compile(r"^\*Section `(\w+)`", re.MULTILINE)
    parts = {part: name for part in PAGE.split("\n## ") for name in named.findall(part)}
    assert sorted(parts.values()) == sorted(SECTIONS)
    assert not [name for part, name in parts.items() if "**When it misleads.**" not in part]


def test_the_options_and_files_that_it_names_are_there() -> None:
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(explain).parameters}
    assert set(re.findall(r"(--[a-z]+)", PAGE)) <= options
    assert all(f"`{name}`" in PAGE for name in (*FILES, FOLDER, *REPLACEMENTS[1:]))
    assert f"({QUESTIONS} by default)" in PAGE


def test_its_pictures_are_small() -> None:
    pictures = [ROOT / "docs" / path for path in re.findall(r"\((images/explain/\w+\.png)\)", PAGE)]
    assert len(pictures) >= 4
    assert not [path.name for path in pictures if path.stat().st_size > PICTURE_BYTES]
    assert {path.name for path in (ROOT / "docs" / "images" / "explain").iterdir()} == {path.name for path in pictures}
