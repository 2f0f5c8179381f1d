"""Files of a report: pictures as PNG, numbers as JSON, written together."""

import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fvl_lightning.core.atomic import atomic_write


def png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def finite(value: Any) -> Any:
    """Returns the same containers with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(value: Any) -> bytes:
    """Returns the content of a JSON file, with null for numbers that JSON does not have."""
    return json.dumps(finite(value), indent=2, allow_nan=False, default=str).encode()


def write_files(folder: Path, files: Mapping[str, bytes], known: Iterable[str]) -> None:
    """Writes the files of a report, each as a whole, in their order.

    Args:
        folder: created if missing.
        files: {name, or path within the folder: content}.
        known: names of all files that such a report may have; those of an earlier report are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(known) - set(files):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / name) as tmp_path:
            tmp_path.write_bytes(content)
