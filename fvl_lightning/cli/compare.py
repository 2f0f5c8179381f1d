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
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words of the comparison.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is finished already.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cells again.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the report again; train and score nothing.")] = False,
) -> None:
    """Train and score every arm with every seed, and write the report.

    Finished cells of the same configuration are kept, unfinished ones resumed; failed ones are left until asked for.

    Example: `fvl compare experiments/demo/comparison.yaml jobs=2`
    """
    check_files(comparison, overrides or [])
    from fvl_lightning.comparison.run import run_comparison

    run_comparison(comparison, overrides or [], fresh, retry_failed, report, show=show)


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
    from fvl_lightning.comparison.run import run_comparison

    run_comparison(path, [], fresh, show=show)


def show(result: Table | str) -> None:
    """Prints a result of a comparison, a line of text unbroken."""
    terminal().print(result, soft_wrap=isinstance(result, str))
