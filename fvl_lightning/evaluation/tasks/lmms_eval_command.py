"""The command that scores a model on the same tasks in lmms-eval."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.tasks.config import TaskConfig


@dataclass(frozen=True)
class LmmsEvalCommand:
    """A command of lmms-eval, and the tasks that it cannot have."""

    line: str
    """The command, quoted for a shell."""
    without: tuple[str, ...]
    """Names of the tasks that lmms-eval does not have."""


def lmms_eval_command(
    tasks: Sequence[TaskConfig],
    model: str,
    adapter: str = "",
    batch_size: int | str = 16,
    precision: str = "32-true",
    limit: int | None = None,
    output: str = "lmms_eval",
) -> LmmsEvalCommand:
    """Returns the command that scores a model of this kit in lmms-eval, with files of samples.

    Args:
        tasks: the tasks; each names its counterpart in `lmms_eval`.
        model: a run, a model folder or a hub id.
        adapter: the folder of an adapter; empty for none.
        batch_size: the most requests in a batch.
        precision: 32-true or bf16-mixed.
        limit: how many documents of each task are asked, the first ones; None for all.
        output: the folder of results and samples.

    Raises:
        ConfigError: lmms-eval has none of the tasks, or a name holds a comma, at which lmms-eval would cut it.
    """
    names = list(dict.fromkeys(task.lmms_eval for task in tasks if task.lmms_eval))
    without = tuple(task.name or task.title for task in tasks if not task.lmms_eval)
    if not names:
        raise ConfigError(f"lmms-eval has none of the tasks {', '.join(without)}: their files set no lmms_eval")
    values = {"pretrained": model, "adapter": adapter, "precision": precision}
    for name, value in values.items():
        if "," in value:
            raise ConfigError(f"{name}: lmms-eval cuts {value} at its comma; name a path without one")
    arguments = ",".join(f"{name}={value}" for name, value in values.items() if value)
    words = ["lmms-eval", "--model", "fvl_lightning", "--model_args", arguments, "--tasks", ",".join(names)]
    words += ["--batch_size", str(batch_size)]
    words += ["--limit", str(limit)] if limit is not None else []
    # lmms-eval asks for likelihoods in its simple interface alone.
    words += ["--force_simple"] if any(task.answer.by == "likelihood" for task in tasks if task.lmms_eval) else []
    words += ["--log_samples", "--output_path", output]
    return LmmsEvalCommand(shlex.join(words), without)
