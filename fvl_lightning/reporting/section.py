"""A part of a report: what was found in sentences, its tables, its figures, and its numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from fvl_lightning.reporting.tables import Grid, markdown_table, markdown_text

FIGURES_FOLDER = "figures"
"""Folder of a report's pictures, beside its Markdown."""
PER_SOURCE = "per_source"
"""Key of Section.values with {source: the number that stands for the source}, if a section of a run has one."""
PER_SOURCE_MEANS = "per_source_means"
"""Key of Section.values with the meaning of these numbers, such as "accuracy lost without the source"."""
_STEM = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Section:
    """A part of a report, in the forms in which it is read: text, tables, pictures and plain numbers."""

    name: str
    """Key in JSON and value of `--only`: lower-case letters, digits and _."""
    title: str
    paragraphs: Sequence[str]
    """Sentences as Markdown, at least one paragraph; the first is the finding, which a report repeats at its top."""
    tables: Sequence[Grid] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """{stem of the file's name, unique in a report: figure}; the stem begins with the section's name."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """All numbers of the section as JSON has them: dicts with texts as keys, lists, texts, numbers, bools, None."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """{stem of a figure: the sentence below it}, which also describes the picture to those who cannot see it."""

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is no key, a section without a sentence, and a wrong stem."""
        if not _STEM.fullmatch(self.name) or not self.paragraphs:
            raise ValueError(f"section {self.name!r}: a name of lower-case letters and a paragraph are needed")
        for stem in (*self.figures, *self.captions):
            if not _STEM.fullmatch(stem) or not stem.startswith(self.name) or stem not in self.figures:
                raise ValueError(f"section {self.name}: {stem!r} is no stem of a figure of this section")


def section_markdown(section: Section) -> str:
    """Returns a section as Markdown; its pictures are figures/<stem>.png beside the file."""
    pictures = (_picture(stem, section.captions.get(stem, "")) for stem in section.figures)
    tables = (markdown_table(grid, level=3) for grid in section.tables)
    return "\n\n".join([f"## {markdown_text(section.title)}", *section.paragraphs, *pictures, *tables])


def _picture(stem: str, caption: str) -> str:
    shown = f"![{markdown_text(caption or stem.replace('_', ' '))}]({FIGURES_FOLDER}/{stem}.png)"
    return f"{shown}\n\n{caption}" if caption else shown
