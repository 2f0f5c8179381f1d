"""`python cell_in_double.py CELL.json`: a rank of a cell that trains in float64, and is not scored."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from fvl_lightning.comparison import worker
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core.terminal import own_rank
from fvl_lightning.runs import setup
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.feature_cache import FeatureCache

build, look_up = setup.build_stage, FeatureCache.__call__


def build_in_double(*arguments: Any) -> Any:
    """The stage with a model of float64."""
    stage = build(*arguments)
    stage.model.double()
    return stage


def look_up_in_double(cache: FeatureCache, split: str, index: int) -> dict[str, Tensor]:
    """Features as float64."""
    return {source: features.double() for source, features in look_up(cache, split, index).items()}


def unscored(runs: list[RunFolder], spec: CellSpec, key: str, *_: Any) -> SimpleNamespace | None:
    """A result without scores, on rank 0."""
    names = {run.info["stage"]: str(run.path) for run in runs}
    return None if own_rank() else SimpleNamespace(plain=lambda: {"cell": key, "runs": names})


setup.build_stage = build_in_double
FeatureCache.__call__ = look_up_in_double  # type: ignore[method-assign]
worker.score_cell = unscored  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(worker.main(Path(sys.argv[1])))
