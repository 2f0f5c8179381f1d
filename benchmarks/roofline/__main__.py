"""The predicted speed of a training step of every Florence-VL preset on a GPU: arithmetic, not a measurement.

python -m benchmarks.roofline [--device h200] [--cases "florence_vl/3b/finetune"] [--output FILE]
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.roofline.cases import CASES, CHANGES, Case, predict
from benchmarks.roofline.device import PUBLISHED, Ceilings, ceilings
from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.core.atomic import write_text_atomically

OUTPUT = Path(__file__).parents[1] / "results" / "roofline.json"
ARITHMETIC = (
    "Arithmetic: each operation of the code takes the larger of its operations and its bytes by the ceilings below. "
    "Nothing here was measured on a GPU; launches, host waits and the loader's work are not counted."
)


def main(words: list[str] | None = None) -> int:
    """Predicts the cases, prints a table and saves them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="h200", choices=sorted(PUBLISHED))
    parser.add_argument("--cases", default="", help=f"names with semicolons: {'; '.join(case.name for case in CASES)}")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file of the results")
    parser.add_argument("--tiny", action="store_true", help="models a thousandth the size, in seconds")
    options = parser.parse_args(words)
    try:
        cases = chosen([name.strip() for name in options.cases.split(";") if name.strip()])
    except ValueError as error:
        parser.error(f"--cases: {error}")
    device, console = ceilings(options.device), Console()
    found = earlier(options.output, device)
    with TemporaryDirectory() as folder:
        overrides = tiny(Path(folder)) if options.tiny else ()
        for case in cases:
            found[case.name] = step = predict(case, device, overrides)
            console.print(f"{case.name}: {_milliseconds(step, 'before')} -> {_milliseconds(step)}")
            write_text_atomically(options.output, json.dumps(saved(device, found), indent=1) + "\n")
    console.print(table_of([found[case.name] for case in cases]))
    console.print(ARITHMETIC)
    return 0


def earlier(file: Path, device: Ceilings) -> dict[str, dict[str, Any]]:
    """Returns {name: case} of a file, to which others are added; nothing of another device or of other changes."""
    if not file.is_file():
        return {}
    known = json.loads(file.read_text(encoding="utf-8"))
    same = {key: known[key] for key in ("ceilings", "changes")} == {
        key: value for key, value in saved(device, {}).items() if key in ("ceilings", "changes")
    }
    return {case["case"]: case for case in known["cases"]} if same else {}


def tiny(folder: Path) -> tuple[str, ...]:
    """Returns the overrides of a quick run, a model a thousandth the size; its tokenizer is written to `folder`."""
    save_tokenizer(folder)
    tokenizers = (f"{slot}.tokenizer={folder}" for slot in ("encoder", "language_model"))
    return "scale=tiny", "trainer.precision=bf16-mixed", *tokenizers


def chosen(names: list[str]) -> list[Case]:
    """Returns the cases of these names, or all; ValueError for an unknown one."""
    known = {case.name for case in CASES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown case '{unknown[0]}', expected some of {'; '.join(sorted(known))}")
    return [case for case in CASES if not names or case.name in names]


def saved(device: Ceilings, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of the file, its cases in the order of CASES."""
    return {
        "about": ARITHMETIC,
        "ceilings": asdict(device),
        "changes": {change.switch: change.title for change in CHANGES},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cases": [found[case.name] for case in CASES if case.name in found],
    }


def table_of(found: list[dict[str, Any]]) -> Table:
    """Returns a row for each case, with the share of the first step time that each change saves."""
    table = Table("case", "a step", "MFU", "saved by")
    for case in found:
        steps = [case[when] for when in ("before", "after")]
        times = " -> ".join(_milliseconds(case, when) for when in ("before", "after"))
        mfu = "" if steps[0]["mfu"] is None else " -> ".join(f"{step['mfu']:.2f}" for step in steps)
        shares = (f"{change['change']} {100 * change['share']:.1f} %" for change in case["changes"])
        table.add_row(case["case"], times, mfu, ", ".join(shares))
    return table


def _milliseconds(case: dict[str, Any], when: str = "after") -> str:
    return f"{1e3 * case[when]['step_seconds']:,.4g} ms"


if __name__ == "__main__":
    raise SystemExit(main())
