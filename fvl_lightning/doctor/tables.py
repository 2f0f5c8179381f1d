"""Tables of findings and of memory."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.terminal import bytes_in_words
from fvl_lightning.doctor.finding import Finding

if TYPE_CHECKING:
    from fvl_lightning.profiling.memory import MemoryEstimate

LOG_WIDTH = 160
"""Columns where the output is not a terminal; narrower tables would break commands in two."""


STATUS_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def findings_table(findings: Iterable[Finding]) -> Table:
    """Returns one row per finding."""
    table = Table("check", "", Column("found", overflow="fold"), Column("what to do", overflow="fold"))
    for finding in findings:
        status = Text(finding.status, style=STATUS_COLOURS[finding.status])
        table.add_row(finding.check, status, finding.message, finding.advice)
    return table


def memory_table(estimate: "MemoryEstimate") -> Table:
    """Returns the bytes per rank, by component and kind."""
    shape = estimate.shape
    title = f"memory per rank by arithmetic: {shape.rows} rows of {shape.tokens} tokens, {shape.images} images"
    kinds = {name: getattr(estimate, name) for name in ("parameters", "gradients", "optimizer", "activations")}
    table = Table("component", *(Column(name, justify="right") for name in kinds), title=title)
    for name in COMPONENTS:
        table.add_row(name, *(bytes_in_words(sizes[name]) for sizes in kinds.values()))
    table.add_row("all", *(bytes_in_words(sum(sizes.values())) for sizes in kinds.values()), end_section=True)
    table.add_row("communication", bytes_in_words(estimate.communication))
    table.add_row("peak", bytes_in_words(estimate.peak))
    return table
