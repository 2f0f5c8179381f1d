"""Writes what explains a run or a comparison: report.md, report.html, explain.json and the figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.reporting.files import finite, png, write_files
from fvl_lightning.reporting.html_page import html_page
from fvl_lightning.reporting.section import FIGURES_FOLDER, PER_SOURCE, Section, section_markdown
from fvl_lightning.reporting.tables import markdown_text

NUMBERS = "explain.json"
"""File of all numbers; it is written last, so that a folder with it is a whole report."""
FILES = ("report.md", "report.html", NUMBERS)


@dataclass(frozen=True)
class Explanation:
    """The sections about a run or a comparison, and the folder of the report."""

    reference: str
    """The run or comparison as it was named."""
    sections: Mapping[str, Section]
    """{name: section}, in the order of the report."""
    folder: Path
    """Folder of report.md, report.html, explain.json and figures/."""
    about: Mapping[str, str] = field(default_factory=dict)
    """{name: text} of what was explained, such as the split."""

    @property
    def values(self) -> dict[str, Any]:
        """All numbers of the sections, {name of a section: its values}."""
        return {name: dict(section.values) for name, section in self.sections.items()}

    @property
    def findings(self) -> dict[str, str]:
        """The first paragraph of each section, {title: finding}."""
        return {section.title: section.paragraphs[0] for section in self.sections.values()}

    @property
    def numbers(self) -> dict[str, float]:
        """{<section>/<source>: number} of the sections with one number for each source."""
        return {
            f"{name}/{source}": float(value)
            for name, section in self.sections.items()
            for source, value in section.values.get(PER_SOURCE, {}).items()
            if isinstance(value, int | float)
        }

    def __repr__(self) -> str:
        return f"<explanation of {self.reference}: {', '.join(self.sections)}; {self.folder / 'report.md'}>"


def check_folder(folder: Path) -> None:
    """Checks that a report may be written to a folder; a file that is no report's is never replaced.

    Raises:
        ConfigError: the folder has other files, and no report.
    """
    if folder.is_file():
        raise ConfigError(f"--output: {folder} is a file, name a folder")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if inside - {*FILES, FIGURES_FOLDER} and not inside & {*FILES}:
        raise ConfigError(f"--output: {folder} has other files and no report of `fvl explain`; name another folder")


def write_report(explained: Explanation) -> Path:
    """Writes the report, each file as a whole and explain.json last, and returns report.md.

    A report that was there is replaced, figures that the new one lacks included.

    Raises:
        DataError: it cannot be written.
    """
    folder, text = explained.folder, markdown(explained)
    sections = explained.sections.values()
    pictures = {
        f"{FIGURES_FOLDER}/{stem}.png": png(figure) for section in sections for stem, figure in section.figures.items()
    }
    numbers = json.dumps(finite(as_json(explained)), indent=2, allow_nan=False)
    files = {
        **pictures,
        "report.md": text.encode(),
        "report.html": html_page(text, pictures, _title(explained)).encode(),
        NUMBERS: numbers.encode(),
    }
    earlier = [f"{FIGURES_FOLDER}/{path.name}" for path in (folder / FIGURES_FOLDER).glob("*.png")]
    try:
        (folder / NUMBERS).unlink(missing_ok=True)  # until the new one is there, the folder is no whole report
        write_files(folder, files, [*FILES, *earlier])
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror})") from None
    return folder / "report.md"


def as_json(explained: Explanation) -> dict[str, Any]:
    """Returns all numbers and sentences of a report; the tables' texts are left out."""
    return {
        "reference": explained.reference,
        "about": dict(explained.about),
        "sections": {
            name: {
                "title": section.title,
                "finding": section.paragraphs[0],
                "figures": [f"{FIGURES_FOLDER}/{stem}.png" for stem in section.figures],
                "values": section.values,
            }
            for name, section in explained.sections.items()
        },
    }


def markdown(explained: Explanation) -> str:
    """Returns the report as Markdown: the findings first, then every section."""
    about = [f"- {markdown_text(f'{name}: {value}')}" for name, value in explained.about.items()]
    findings = [f"- **{markdown_text(title)}.** {text}" for title, text in explained.findings.items()]
    guide = "docs/explain.md of the kit says for every number what it means, and when it misleads."
    head = [f"# {markdown_text(_title(explained))}", "\n".join(findings), "\n".join(about), guide]
    return "\n\n".join([*filter(None, head), *map(section_markdown, explained.sections.values())]) + "\n"


def _title(explained: Explanation) -> str:
    return f"What each source is worth: {explained.reference}"


def named(sections: Sequence[Section]) -> dict[str, Section]:
    """Returns {name: section}; ValueError for a name or a figure's stem that stands twice."""
    found = {section.name: section for section in sections}
    stems = [stem for section in sections for stem in section.figures]
    if len(found) < len(sections) or len(set(stems)) < len(stems):
        raise ValueError(f"two sections share a name or a figure: {[section.name for section in sections]}")
    return found
