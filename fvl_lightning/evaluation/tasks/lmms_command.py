"""The lmms-eval command for the same model and tasks, so that others can reproduce the numbers."""

import shlex
from collections.abc import Sequence

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.tasks.config import TaskConfig

BATCH = 16


def lmms_eval_command(
    model: str,
    tasks: Sequence[TaskConfig],
    limit: int | None = None,
    output: str = "logs",
    adapter: str | None = None,
    precision: str = "32-true",
) -> str:
    """Returns the command, which needs lmms-eval and this kit in one environment.

    Args:
        model: a run, an export or a hub model.
        tasks: tasks with a name in lmms-eval (`lmms_eval`); several tasks may share one name there.
        limit: the number of questions of each task; lmms-eval takes the first ones and does not spread them.
        output: the folder of its samples, which `fvl evaluate --from` reads.
        adapter: the folder of an adapter; None for none.
        precision: 32-true or bf16-mixed.

    Raises:
        ConfigError: a task has no name in lmms-eval, or a path has a comma, at which lmms-eval would split it.
    """
    if missing := [task.name or task.title for task in tasks if not task.lmms_eval]:
        raise ConfigError(f"--print: lmms-eval has no task for {', '.join(missing)} (its file names no `lmms_eval`)")
    values = {"pretrained": model, "adapter": adapter or "", "precision": precision}
    if cut := [value for value in values.values() if "," in value]:
        raise ConfigError(f"--print: lmms-eval cuts {cut[0]} at its comma; use a path without commas")
    arguments = ",".join(f"{name}={value}" for name, value in values.items() if value)
    names = dict.fromkeys(task.lmms_eval for task in tasks)
    words = ["python", "-m", "lmms_eval", "--model", "fvl_lightning", "--model_args", arguments]
    words += ["--tasks", ",".join(names), "--batch_size", str(BATCH)]
    words += ["--limit", str(limit)] if limit else []
    # lmms-eval asks for likelihoods in its simple interface alone.
    words += ["--force_simple"] if any(task.answer.by == "likelihood" for task in tasks) else []
    return shlex.join([*words, "--log_samples", "--output_path", output])
