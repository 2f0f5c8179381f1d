"""The result of a check: ok, warning, failed or skipped, with advice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from fvl_lightning.core.errors import UserError, first_line

CheckStatus = Literal["ok", "warning", "failed", "skipped"]


ADVICE = {
    "configuration": "fix what it names: `fvl describe` lists every field, `fvl show` prints the resolved file; a "
    "plugin is a Python file or module that can be imported here",
    "model": "fix what it names (`fvl describe` lists every field of a component)",
    "init_from": "name a run that has finished (`fvl train --resume` finishes one), or the folder of a model",
    "shards": "`fvl shards build` builds them where `data` expects them; `fvl shards check` names what is damaged",
    "supervision": "`fvl shards preview` shows rows as training sees them",
    "tracking": "start the store, name another in tracking.uri, or train without (tracking.enabled=false)",
    "one batch": "training would fail in the same place: fix what it names",
}
"""What to do when an error ends a check, by check."""


@dataclass(frozen=True)
class Finding:
    """One line of the table: the result of a check, and what to do where something is wrong."""

    check: str
    status: CheckStatus
    message: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.advice or self.status not in ("warning", "failed"), f"{self.check}: a {self.status} needs advice"


def run_check(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Runs a check and returns its findings; an error becomes a failed finding, so that later checks still run."""
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)
    except UserError as error:
        findings.append(Finding(name, "failed", str(error), ADVICE[name]))
    except Exception as error:  # for instance a bug in a component
        advice = "training would fail in the same place; its traceback shows where"
        findings.append(Finding(name, "failed", f"{type(error).__name__}: {first_line(error)}", advice))
    return findings


def skipped(check: str, needs: str) -> Finding:
    """Returns the finding of a check that cannot run because an earlier one failed."""
    return Finding(check, "skipped", f"needs {needs}")
