"""The command of lmms-eval that asks a model the same tasks, for numbers that others can repeat with their tools."""

import shlex
from collections.abc import Sequence

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.tasks.config import TaskConfig

BATCH = 16


def lmms_eval_command(model: str, tasks: Sequence[TaskConfig], limit: int | None = None, output: str = "logs") -> str:
    """Returns the command, which needs lmms-eval and this kit in one environment.

    Args:
        model: a run, an export or a hub model.
        tasks: tasks that name themselves in lmms-eval (`lmms_eval`).
        limit: the first questions of each task; lmms-eval does not spread them.
        output: the folder of its samples, which `fvl evaluate --from` reads.

    Raises:
        ConfigError: lmms-eval has none of one of the tasks.
    """
    if missing := [task.name for task in tasks if not task.lmms_eval]:
        raise ConfigError(f"--print: lmms-eval has no task for {', '.join(missing)} (its file names no `lmms_eval`)")
    words = ["python", "-m", "lmms_eval", "--model", "fvl_lightning", "--model_args", f"pretrained={model}"]
    words += ["--tasks", ",".join(task.lmms_eval for task in tasks), "--batch_size", str(BATCH)]
    words += ["--limit", str(limit)] if limit else []
    return shlex.join([*words, "--log_samples", "--output_path", output])
