"""`fvl sync`: runs whose tracking store could not be reached are told there after all."""

from typing import Annotated

import typer

from fvl_lightning.core.terminal import say
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.tracking import sync_run


def sync(
    runs: Annotated[list[str], typer.Argument(help="Run folders, such as runs/finetune, or MLflow run ids.")],
) -> None:
    """Send to MLflow what it lacks of runs: points, scores, the configuration, how they ended.

    Any number of times: what is there already is not sent again.

    Example: `fvl sync runs/finetune`
    """
    for reference in runs:
        run = RunFolder.open(reference)
        delivery = sync_run(run)
        missing = f"{delivery.points} points and {delivery.others} other entries sent"
        said = missing if delivery.points or delivery.others else "nothing was missing"
        say(f"{run.path}: {said}")
