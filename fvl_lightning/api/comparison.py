"""Runs a comparison, and reads the results of one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.result_files.comparison import Comparison, read_comparison
from fvl_lightning.comparison.run import run_comparison
from fvl_lightning.core.config.base_files import OVERRIDES
from fvl_lightning.core.config.loading import as_overrides


def compare(
    path: str | os.PathLike[str],
    *overrides: str | Mapping[str, Any],
    fresh: bool = False,
    retry_failed: bool = False,
    report_only: bool = False,
) -> Comparison:
    """Trains and scores every arm with every seed, writes the report, and returns the results.

    Finished cells of the same configuration are kept, and unfinished ones resumed.

    Args:
        path: the comparison file.
        overrides: "key=value" of the comparison, or mappings {dotted key: value}; later ones win.
        fresh: trains finished cells again.
        retry_failed: tries failed cells again.
        report_only: trains and scores nothing, and reports what is finished.

    Raises:
        ConfigError: the arms are not well defined, or the comparison would not be fair.
        DataError: cells failed (the report of the others is written), or there is nothing to report.
    """
    words = as_overrides(overrides)
    return read_comparison(run_comparison(Path(path), words, fresh, retry_failed, report_only, origin=OVERRIDES))


def open_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """Reads the results of a comparison from its folder, such as runs/demo.

    Raises:
        DataError: comparison.json is missing or broken.
    """
    return read_comparison(Path(folder))
