"""Where the results of a benchmark go: a JSON file beside it, with the machine they were measured on."""

import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, result: dict[str, Any], folder: Path | None = None) -> None:
    """Saves `result` as <folder>/<name>.json; None for RESULTS."""
    folder = folder or RESULTS
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
    folder.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, **result}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
