"""Runs checks one after the other, each in a process of its own, and saves what each has found.

A check that crashes, hangs or loses the device therefore costs only itself, and a kill of the whole loses at most the
check under way. `checks.jsonl` has a line for every finding, as it is found, and one for the end of every check.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Check, time_for

ROOT = Path(__file__).parents[2]
LINES, LOG = "checks.jsonl", "log.txt"
LAST_LINES = 3
"""Lines of a failed check's output that its end has."""


@dataclass(frozen=True)
class Settings:
    """How all checks run."""

    tiny: bool = False
    """Whether to run the same code on a CPU with models a thousandth the size; it measures nothing."""
    rows: int = 4
    """Rows of a training's batch."""
    steps: int = 6
    """Steps of a training, the first of them not timed."""

    @property
    def device(self) -> str:
        """The type of the device."""
        return "cpu" if self.tiny else "cuda"


Findings = Iterator[dict[str, Any]]
"""What a check has found: each has a `case`, and numbers or an `error`."""


def run_checks(
    checks: Sequence[Check],
    settings: Settings,
    folder: Path,
    seconds: float,
    show: Callable[[str], None] = print,
    command: Callable[[Check, Settings, Path], list[str]] | None = None,
) -> list[dict[str, Any]]:
    """Runs the checks that fit into the time, and returns the lines of `checks.jsonl`.

    Args:
        checks: in order of worth.
        settings: of all checks.
        folder: for the results, which are added to those that are there.
        seconds: of all checks together.
        show: called with a line at the end of each check.
        command: the command line of a check's process.
    """
    folder = folder.absolute()  # checks work in folders of their own
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    for check in checks:
        left = end - time.monotonic()
        limit = time_for(check, left)
        if limit is None:
            line: dict[str, Any] = {"check": check.name, "end": "passed over", "seconds_left": round(left)}
        else:
            words = (command or command_line)(check, settings, folder / LINES)
            line = {"check": check.name, **_run(words, limit, folder / LOG)}
        append(folder / LINES, line)
        show(json.dumps(line))
    return read(folder / LINES)


def command_line(check: Check, settings: Settings, lines: Path) -> list[str]:
    """Returns the command that runs one check and appends its findings to `lines`."""
    return [sys.executable, "-m", "benchmarks.gpu.runner", check.name, json.dumps(asdict(settings)), str(lines)]


def _run(words: list[str], limit: float, log: Path) -> dict[str, Any]:
    """Runs a process with all its children, and returns how it ended."""
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n==== {' '.join(words)}\n")
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=_environment()
        )
        try:
            end = "ok" if process.wait(limit) == 0 else f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            end = f"killed after {limit:.0f} s"
        finally:
            _kill_all(process)
    line: dict[str, Any] = {"end": end, "seconds": round(time.monotonic() - started, 1)}
    if end != "ok":
        text = log.read_bytes()[begin:].decode(errors="replace")
        line["last_lines"] = [shown.strip() for shown in text.splitlines() if shown.strip()][-LAST_LINES:]
    return line


def _environment() -> dict[str, str]:
    """Returns the environment of a check: it finds the kit of this clone, and asks no hub."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of a check's process group, such as the cells of a comparison."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def append(file: Path, line: dict[str, Any]) -> None:
    """Appends a line to a JSON Lines file, on the disk at once."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a JSON Lines file; a kill may have cut the last one."""
    if not file.is_file():
        return []
    *whole, _ = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole if line]


def run_one(check: Check, settings: Settings, lines: Path) -> None:
    """Runs one check in this process, and saves every finding as it comes."""
    findings = import_module(f"benchmarks.gpu.{check.module}").findings
    for finding in findings(settings, **check.arguments):
        append(lines, {"check": check.name, **finding})


if __name__ == "__main__":
    from benchmarks.gpu.plan import chosen

    name, how, file = sys.argv[1:]
    run_one(chosen([name])[0], Settings(**json.loads(how)), Path(file))
    sys.stdout.flush()
    os._exit(0)  # the end of the process frees the device at once; Python would first free tensor by tensor
