"""The model inside a checkpoint: for a run that has not saved its model, or the best model instead of the last."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from datamodules.encoding.question_form import QuestionForm
from fvl_lightning.core.atomic import temporary_directory
from fvl_lightning.core.errors import DataError
from fvl_lightning.runs.adapter_base import attach_trainable_adapters
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import check_answers
from fvl_lightning.runs.setup import weighted_stage
from fvl_lightning.training.checkpointing.last_and_previous import best_checkpoint, newest_checkpoint, read_checkpoint
from fvl_lightning.training.distributed.process_group import Ranks

Which = Literal["last", "best"]


@contextmanager
def checkpoint_model(reference: str, which: Which) -> Iterator[Path]:
    """Yields a temporary folder with the model as the run would have saved it.

    One process builds it in main memory, on whatever devices the run was trained.

    Raises:
        DataError: `reference` is no run, or none of its checkpoints is whole.
        ConfigError: the run trains an encoder alone.
    """
    run = RunFolder.open(reference)
    check_answers(run)
    path = chosen_checkpoint(run, which)
    stage, parents = weighted_stage(run.experiment(), Ranks())
    stage.asking = QuestionForm.read(run.info.get("asking") or {})
    attach_trainable_adapters(stage, parents, run)
    stage.load_weights(read_checkpoint(path), f"--checkpoint {which}")
    with temporary_directory(run.path / "export") as folder:  # next to the base of an adapter
        stage.save_model(folder)
        yield folder


def chosen_checkpoint(run: RunFolder, which: Which) -> Path:
    """Returns the newest whole checkpoint of a run, or the best one; a warning names a damaged one before it.

    Raises:
        DataError: there is none.
    """
    run_hash = run.info.get("config_hash")
    if which == "best":
        path = best_checkpoint(run.checkpoints, run_hash)
        why = "trainer.keep_best keeps one from the first validation on"
    else:
        path = newest_checkpoint(run.checkpoints, run_hash)
        why = "it stopped before its first one, or they are damaged"
    if path is None:
        raise DataError(f"--checkpoint {which}: {run.path} has no such checkpoint; {why}")
    return path
