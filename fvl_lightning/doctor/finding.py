"""A finding: ok, warning, failed or skipped, with advice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from fvl_lightning.core.errors import UserError, first_line

Verdict = Literal["ok", "warning", "failed", "skipped"]


ADVICE = {
    "configuration": "mend what it names: `fvl describe` has every field, `fvl show` what a file comes to; a plugin is "
    "a Python file or module that can be imported here",
    "model": "mend what it names (`fvl describe` has every field of a component)",
    "init_from": "name a run that has finished (`fvl train --resume` finishes one), or the folder of a model",
    "shards": "`fvl shards build` makes them where `data` says they are; `fvl shards check` names what is damaged",
    "supervision": "`fvl shards preview` shows rows as they are trained on",
    "tracking": "start the store, name another in tracking.uri, or train without (tracking.enabled=false)",
    "one batch": "the training would end there too: mend what it names",
}
"""By check, for an error that ends it."""


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was found, and what to do about it where something is wrong."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.advice or self.verdict not in ("warning", "failed"), f"{self.check}: what is there to do about it?"


def findings_of(check: str, question: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check has found; an error that ends it is a finding too, and no end of the checks after it."""
    findings: list[Finding] = []
    try:
        for finding in question():
            findings.append(finding)
    except UserError as error:
        findings.append(Finding(check, "failed", str(error), ADVICE[check]))
    except Exception as error:  # a component's own mistake, say
        said = f"{type(error).__name__}: {first_line(error)}"
        findings.append(Finding(check, "failed", said, "the training would end there too; its traceback has the place"))
    return findings


def skipped(check: str, needs: str) -> Finding:
    """A check that cannot be done after what has failed before it."""
    return Finding(check, "skipped", f"needs {needs}")
