"""`fvl demo`: the whole story on one machine, without a download."""

from pathlib import Path
from typing import Annotated

import typer

from fvl_lightning.cli.compare import run_comparison
from fvl_lightning.core.errors import ConfigError

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "demo"
"""The experiment files of the clone this package runs from."""


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and images; little is learned.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is finished already.")] = False,
) -> None:
    """Train a small Florence-2 and three fusions on it, ask about new images, leave a report and MLflow runs.

    Example: `fvl demo --quick`
    """
    path = EXPERIMENTS / ("quick/comparison.yaml" if quick else "comparison.yaml")
    if not path.is_file():
        raise ConfigError(f"demo: {path} is not there; run the demo from a clone of the repository")
    run_comparison(path, [], fresh)
