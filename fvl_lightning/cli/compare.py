"""`fvl compare`: arms that differ only in the swept keys, trained with every seed, under one MLflow parent."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fvl_lightning.comparison.plan import check_files
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import current_activity, terminal


def compare(
    comparison: Annotated[Path, typer.Argument(help="Comparison file, such as experiments/demo/comparison.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides, such as jobs=2.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train all cells again, also finished ones.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Only write the report of what is finished.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print parameters, FLOPs, memory, hours and disk, and train nothing.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="With --plan: the GPU to plan for, such as a100-80gb or rtx4090.")
    ] = None,
    device_tflops: Annotated[
        float | None,
        typer.Option("--device-tflops", min=1e-6, help="With --plan: 10^12 operations a second that it sustains."),
    ] = None,
    row_tokens: Annotated[
        int | None, typer.Option("--row-tokens", min=1, help="With --plan: tokens of a row, where there are no shards.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --plan: measure a few steps of each stage on this machine first.")
    ] = False,
) -> None:
    """Train and score every arm with every seed, and write the report.

    A cell is one arm with one seed. Started again, the comparison keeps finished cells and resumes unfinished ones.
    Overrides set keys of the comparison; its key `set` overrides the experiments, as in set=trainer.max_steps=20.

    --plan needs neither a GPU nor the hub; it writes plan.json into the folder of the comparison.

    Example: `fvl compare experiments/demo/comparison.yaml jobs=2`

    Example: `fvl compare experiments/demo/comparison.yaml --plan --device rtx4090`
    """
    check_files(comparison, overrides or [])
    of_plans = {
        "--device": device, "--device-tflops": device_tflops, "--row-tokens": row_tokens, "--measure": measure or None
    }  # fmt: skip
    if plan:
        from fvl_lightning.comparison.estimates.estimate import PlanOptions
        from fvl_lightning.comparison.estimates.summary import show_plan

        with current_activity() as report_progress:
            options = PlanOptions(device, device_tflops, row_tokens, measure)
            shown = show_plan(comparison, overrides or [], options, report_progress)
        for one in shown:
            show(one)
        return
    if given := [name for name, value in of_plans.items() if value is not None]:
        raise ConfigError(f"{given[0]}: it is an option of a plan, add --plan")
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
