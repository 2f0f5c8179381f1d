"""Checks the evaluations during the trainings of a comparison, before anything is trained."""

from collections.abc import Iterable, Sequence

from fvl_lightning.comparison.plan import Arms
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.validation_rows import shared_file
from fvl_lightning.evaluation.while_training import open_evaluation
from fvl_lightning.training.callbacks.evaluation import check_followed
from fvl_lightning.training.distributed.process_group import Ranks


def evaluated_stages(arms: Arms) -> list[tuple[str, ExperimentConfig]]:
    """Returns (arm, stage) of the trainings with `trainer.evaluate`."""
    return [(arm, stage) for arm, stages in arms.items() for stage in stages if stage.trainer.evaluate is not None]


def check_evaluations(stages: Sequence[tuple[str, ExperimentConfig]], judged: Iterable[TaskConfig]) -> str:
    """Checks tasks, scores that are followed, and that no arm is judged on rows that its training has seen.

    Args:
        stages: (arm, stage) of the trainings that evaluate.
        judged: the tasks that the arms are judged on.

    Returns:
        What was found to be right.

    Raises:
        ConfigError, DataError: those of open_evaluation and check_followed; or rows of a task are seen in training.
    """
    judged, seen = list(judged), []
    for arm, stage in stages:
        settings = as_plain([stage.trainer.evaluate, stage.trainer.callbacks, stage.trainer.keep_best_by, stage.stage])
        if settings in seen:
            continue
        seen.append(settings)
        evaluation = open_evaluation(stage, Ranks())
        check_followed(stage.trainer, evaluation.higher_is_better)
        for task, _ in evaluation.asked:
            for other in judged:
                if (file := shared_file(task.data, other.data)) is not None:
                    raise ConfigError(
                        f"arm {arm}, trainer.evaluate.tasks: validation rows of {task.name} are in {file}, by which "
                        f"task {other.name} judges the arms; name other rows"
                    )
    return f"{plural(len(stages), 'stage')} of the arms can be evaluated during training, on rows that judge no arm"
