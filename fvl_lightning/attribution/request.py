"""The request of `fvl explain`: sections by name, and how questions are asked. It imports no library."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fvl_lightning.attribution.knock_out.subsets import Subsets
from fvl_lightning.core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from fvl_lightning.modeling.connector.replacement import Replacement

SECTIONS: Mapping[str, str] = {
    "gates": "the weights that the fusion gives the sources",
    "knock_out": "what the answers lose without a source",
    "gradients": "how much the loss would move with each source",
    "views": "features in one basis, their similarity, rank, and what davit does not explain",
    "answer_attention": "what answers look at",
    "retrained": "what trainings on subsets of the sources gain, for comparisons",
    "ranking": "the measures side by side, for comparisons over subsets",
    "prompts": "features and answers of other prompts, for comparisons",
    "alignment": "features beside captions, for runs of alignment_probe",
}
"""{name of a section: what it shows}, in the order of a report; makers.py has the functions that make them."""

QUESTIONS = 512
"""Questions that are asked by default."""
FOLDER = "explain"
"""Folder of a report within that of its run or comparison."""
REPLACEMENTS = ("mean", "shuffled", "noise", "zero")
"""The kinds of features in place of those of a source that is knocked out; see modeling/connector/replacement.py."""


@dataclass(frozen=True)
class ExplainRequest:
    """The sections that are made, and how questions are asked."""

    only: tuple[str, ...] = ()
    """Names of the sections; none for all that there are for a run or comparison."""
    split: str = "test"
    limit: int | None = QUESTIONS
    """The number of questions, spread evenly over the split; None for all."""
    subsets: Subsets = "single"
    replacements: "Sequence[Replacement]" = ("mean",)
    """The kinds of features that stand in place of those of a source, each asked with every subset."""
    accelerator: str | None = None
    """None for that of the run's training."""
    precision: str = "32-true"

    def wanted(self, there: Iterable[str], what: str) -> list[str]:
        """Returns the names that are asked for among those that are there, in their order.

        Args:
            there: the sections that can be made.
            what: of what, for the message.

        Raises:
            ConfigError: some are asked for, but none of these.
        """
        there = list(there)
        names = [name for name in there if not self.only or name in self.only]
        if not names:
            raise ConfigError(f"--only: {what} has no section {', '.join(self.only)}, it has {', '.join(there)}")
        return names


def known_sections(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names, once they are right; ConfigError for an unknown one."""
    for name in names:
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS, "--only")
    return tuple(dict.fromkeys(names))


def known_replacements(names: Sequence[str]) -> "tuple[Replacement, ...]":
    """Returns the names, once they are right; ConfigError for an unknown one, and for none."""
    for name in names or [""]:
        if name not in REPLACEMENTS:
            raise unknown_name("replacement", name, REPLACEMENTS, "--replace")
    return tuple(cast("Replacement", name) for name in dict.fromkeys(names))


def report_folder(reference: Path, output: Path | None, several: bool) -> Path:
    """Returns the folder of a report.

    Args:
        reference: the folder of the run or comparison.
        output: the folder that was asked for; None for one within `reference`.
        several: whether other references have a report too, each in a folder of its own within `output`.
    """
    if output is None:
        return reference / FOLDER
    return output / "_".join(part for part in reference.parts if part not in ("/", "..")) if several else output
