"""`fvl explain`: what each feature source is worth to a trained model, or to the arms of a comparison."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn

from fvl_lightning.attribution.knock_out.subsets import Subsets as Which
from fvl_lightning.attribution.request import QUESTIONS, ExplainRequest, known_replacements, known_sections
from fvl_lightning.cli.evaluate import Device, Precision
from fvl_lightning.core.terminal import progress, say

References = Annotated[
    list[str],
    typer.Argument(metavar="RUN_OR_COMPARISON", help="Runs (folder or MLflow id), and folders of comparisons."),
]
Only = Annotated[
    str | None, typer.Option(help="Sections to make, such as gates,knock_out; without it, all that there are.")
]
Split = Annotated[str, typer.Option(help="Split whose questions are asked.")]
Limit = Annotated[int, typer.Option(min=1, help="Ask this many questions, spread evenly over the split.")]
Subsets = Annotated[
    Which, typer.Option(help="Knock out each source and all but one, or every subset of the sources.")
]
Replace = Annotated[
    str, typer.Option(help="Features in place of those of a source: some of mean,shuffled,noise,zero.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the report, or of one folder each for several; by default RUN/explain.")
]


def explain(
    references: References,
    only: Only = None,
    split: Split = "test",
    limit: Limit = QUESTIONS,
    subsets: Subsets = "single",
    replace: Replace = "mean",
    output: Output = None,
    precision: Precision = "32-true",
    accelerator: Device = None,
) -> None:
    """Show what each feature source is worth to a trained model.

    The report has sentences, tables, figures and numbers, and goes to MLflow too. For a comparison it has the numbers
    of each arm, averaged over seeds, and what training without a source costs. Nothing is trained. docs/explain.md says
    what each number means, and when it misleads.

    Example: `fvl explain runs/demo/gated/finetune`
    """
    names, replacements = known_sections(_names(only or "")), known_replacements(_names(replace))
    from fvl_lightning.attribution.explain import explain_all

    request = ExplainRequest(names, split, limit, subsets, replacements, accelerator, precision)
    with progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as bar:
        shown = bar.add_task("opening", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(shown, description=what, completed=done, total=total)

        explained = explain_all(references, request, output, show)
    for one in explained:
        for title, finding in one.findings.items():
            say(f"{title}: {finding}")
        say(f"report: {one.folder / 'report.md'}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
