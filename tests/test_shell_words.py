"""Commands in the pages can be pasted into any shell: zsh, a Mac's, takes [ ] outside quotes for a pattern."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|\\\\.|#.*")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_no_command_has_a_pattern_outside_quotes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("fvl ")]
    commands += re.findall(r"`(fvl [^`]*)`", text)
    assert not [command for command in commands if re.search(r"\w=\S*[\[*?{]", QUOTED.sub("", command))]
