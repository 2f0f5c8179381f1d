"""What `fvl explain` is asked for: the sections by name, and how questions are asked. It imports no library."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fvl_lightning.core.errors import ConfigError, unknown_name

OF_RUN: Mapping[str, str] = {}
"""{section of a run: what it shows}, in the order of the report."""
OF_PROBE: Mapping[str, str] = {}
"""The same of a run of the stage alignment_probe, which has no answers."""
OF_COMPARISON: Mapping[str, str] = {}
"""The same of a comparison, besides the sections of its runs averaged over seeds."""

QUESTIONS = 512
"""Questions that are asked by default."""
FOLDER = "explain"
"""Folder of a report within that of its run or comparison."""
SUBSETS = ("single", "all")
"""What is knocked out: each source alone, or every subset of the sources."""


@dataclass(frozen=True)
class ExplainRequest:
    """Which sections are made, and how questions are asked."""

    only: tuple[str, ...] = ()
    """Names of the sections; none for all that there are for a run or comparison."""
    split: str = "test"
    limit: int | None = QUESTIONS
    """The number of questions, spread evenly over the split; None for all."""
    subsets: str = "single"
    """One of SUBSETS."""
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
    allowed = {**OF_RUN, **OF_PROBE, **OF_COMPARISON}
    for name in names:
        if name not in allowed:
            raise unknown_name("section", name, allowed, "--only")
    return tuple(dict.fromkeys(names))


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
