"""`fvl compare`: arms that differ only in the swept keys, trained with every seed, under one MLflow parent."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fvl_lightning.comparison.plan import check_files
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import terminal


def compare(
    comparison: Annotated[Path, typer.Argument(help="Comparison file, such as experiments/demo/comparison.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides, such as jobs=2.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train all cells again, also finished ones.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Only write the report of what is finished.")] = False,
) -> None:
    """Train and score every arm with every seed, and write the report.

    A cell is one arm with one seed. Started again, the comparison keeps finished cells and resumes unfinished ones.
    Overrides set keys of the comparison; its key `set` overrides the experiments, as in set=trainer.max_steps=20.

    Example: `fvl compare experiments/demo/comparison.yaml jobs=2`
    """
    check_files(comparison, overrides or [])
    from fvl_lightning.comparison.run import run_comparison

    run_comparison(comparison, overrides or [], fresh, retry_failed, report, show=show)


EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "demo"
"""The experiment files of the clone this package runs from."""


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps and images: minutes, but little is learnt.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train all cells again, also finished ones.")] = False,
) -> None:
    """Train a small Florence-2 and three fusions, score them on new images, and write a report.

    Example: `fvl demo --quick`
    """
    path = EXPERIMENTS / ("quick/comparison.yaml" if quick else "comparison.yaml")
    if not path.is_file():
        raise ConfigError(f"demo: {path} is not there; run the demo from a clone of the repository")
    from fvl_lightning.comparison.run import run_comparison

    run_comparison(path, [], fresh, show=show)


def show(result: Table | str) -> None:
    """Prints a result of a comparison, a line of text unbroken."""
    terminal().print(result, soft_wrap=isinstance(result, str))
