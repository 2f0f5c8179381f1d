"""What this kit does on one GPU: kernels, every stage, 3B steps, memory, and a comparison end to end.

python -m benchmarks.gpu [--plan several] [--checks smoke,finetune] [--seconds 480] [--output FOLDER]
python -m benchmarks.gpu --tiny
"""

import argparse
import json
import signal
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gpu.plan import CHECKS, PLANS, chosen
from benchmarks.gpu.runner import LINES, Settings, read, run_checks
from benchmarks.gpu.table import hardware, table_of, versions, with_counts
from benchmarks.gpu.training import WARM_UP

MACHINE, TABLE = "machine.json", "gpu.json"


def main(words: list[str] | None = None) -> int:
    """Runs the checks, prints the table and saves it; returns 1 if a check has not ended well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checks", default="", help=f"names with commas: {', '.join(check.name for check in CHECKS)}")
    parser.add_argument("--plan", default="one", choices=sorted(PLANS), help="for one GPU, or what several GPUs add")
    parser.add_argument("--seconds", type=float, help="of all checks (default: the plan's); others are passed over")
    parser.add_argument("--rows", type=int, default=4, help="rows of a 3B training's batch")
    parser.add_argument("--steps", type=int, default=6, help=f"steps of a 3B training, {WARM_UP} of them not timed")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="the same code on a CPU, in minutes; it measures nothing")
    parser.add_argument("--table", action="store_true", help="run nothing, only make the table of what --output has")
    options = parser.parse_args(words)
    if options.rows < 1 or options.steps <= WARM_UP + 1:
        parser.error(f"take at least one row and more than {WARM_UP + 1} steps")
    try:
        checks = chosen([name.strip() for name in options.checks.split(",") if name.strip()], options.plan)
    except ValueError as error:
        parser.error(f"--checks: {error}")
    settings = Settings(options.tiny, options.rows, options.steps)
    console, machine = Console(), options.output / MACHINE
    if options.table and not machine.is_file():
        parser.error(f"--table: {options.output} has no results of an earlier start ({MACHINE})")
    if not options.table and machine.exists():
        parser.error(f"--output: {options.output} has results of an earlier start; name another folder")
    if options.table:
        known = json.loads(machine.read_text(encoding="utf-8"))
        settings, lines = Settings(**known.pop("settings")), read(options.output / LINES)
    else:
        if not options.tiny and not torch.cuda.is_available():
            parser.error("this machine has no CUDA device; --tiny runs the same code on a CPU")
        known = {"hardware": hardware(settings), "versions": versions()}
        options.output.mkdir(parents=True, exist_ok=True)
        machine.write_text(json.dumps({"settings": asdict(settings), **known}), encoding="utf-8")
        seconds = PLANS[options.plan].seconds if options.seconds is None else options.seconds
        try:
            lines = run_checks(checks, settings, options.output, seconds, console.print)
        except KeyboardInterrupt:
            console.print(f"stopped; --table --output {options.output} makes the table of what was found until then")
            return 130
    # Counted after the checks, on the CPU: the device is not kept waiting, and --table does it elsewhere.
    lines = with_counts(lines, settings, known["hardware"]["device"])
    text = json.dumps({**known, "settings": asdict(settings), "checks": lines}, indent=2)
    (options.output / TABLE).write_text(text + "\n", encoding="utf-8")
    console.print(table_of(lines))
    return int(any("error" in line or line.get("end", "ok") != "ok" for line in lines))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the check under way ends too
    raise SystemExit(main())
