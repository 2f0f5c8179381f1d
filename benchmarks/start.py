"""CPU time of `fvl` where it only shows something or finds a mistake, compared with another checkout.

    python benchmarks/start.py OTHER_CHECKOUT [--repeats 5]

Each command runs in a fresh process, in turn here and in the other checkout, with the same interpreter and compiled
modules. The time is user and system time of the process and its children. The table and its JSON
(benchmarks/results/start.json) give medians and the ratio of the medians; the goal for `--help` is 0.15.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from recording import record
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[1]
EXPERIMENT = "experiments/demo/finetune.yaml"
COMMANDS = {
    "fvl --help": (["--help"], 0),
    "fvl list": (["list"], 0),
    "fvl train, unknown fusion": (["train", EXPERIMENT, "fusion=gatted"], 2),
    "fvl train, unknown key": (["train", EXPERIMENT, "trainer.max_step=20"], 2),
}
"""Each command with its arguments and its exit code."""


def main() -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {name: {"here": [], "other": []} for name in COMMANDS}
    checkouts = {"here": HERE, "other": options.other.resolve()}
    for checkout in checkouts.values():
        cpu_seconds(checkout, ["--help"], 0)  # compiles modules and reads files from the disk
    for _ in range(options.repeats):
        for name, (arguments, code) in COMMANDS.items():
            for where, checkout in checkouts.items():
                seconds[name][where].append(cpu_seconds(checkout, arguments, code))
        save(seconds, checkouts)
    table = Table("command", "CPU s, here", "CPU s, other", "ratio", title="A start of fvl")
    for name, row in medians(seconds).items():
        table.add_row(name, f"{row['here']:.2f}", f"{row['other']:.2f}", f"{row['here'] / row['other']:.3f}")
    Console().print(table)


def medians(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """The median of each command in each checkout."""
    return {name: {where: statistics.median(values) for where, values in row.items()} for name, row in seconds.items()}


def save(seconds: dict[str, dict[str, list[float]]], checkouts: dict[str, Path]) -> None:
    """Saves what has been measured so far."""
    ratios = {name: row["here"] / row["other"] for name, row in medians(seconds).items()}
    commits = {where: commit(checkout) for where, checkout in checkouts.items()}
    record("start", {"commits": commits, "ratios": ratios, "cpu_seconds": seconds})


def cpu_seconds(checkout: Path, arguments: list[str], code: int) -> float:
    """User and system time of `fvl <arguments>` in a fresh process; its exit code must be `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "fvl_lightning", *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"{checkout}: fvl {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-300:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commit(checkout: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
