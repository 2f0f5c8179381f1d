"""Scores the model of a training on the validation rows of tasks, for `trainer.evaluate`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from fvl_lightning.core.config.evaluation import EVALUATION
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.errors import ConfigError, UserError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.batched_answers import Asking, StoppedAnswering
from fvl_lightning.evaluation.task_rows.questions import TaskQuestions, read_questions
from fvl_lightning.evaluation.tasks.checks import metric_choice
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.score import primary_of, score_task, task_metric
from fvl_lightning.evaluation.tasks.tracking import logged_name, named_scores
from fvl_lightning.evaluation.validation_rows import on_validation
from fvl_lightning.stages.language import LanguageStage
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.stage_interface import StageInterface

WHERE, FIRST = "trainer.evaluate", EVALUATION.rstrip("/")
"""The place of mistakes, and the first part of the names of scores."""

GRADIENT_AND_MOMENTS = 3
"""Tensors of the size of a trained one that a training holds besides."""


class AskedInTraining(NamedTuple):
    """A task, and the validation rows of it that are asked."""

    task: TaskConfig
    questions: TaskQuestions

    @property
    def numbers(self) -> Sequence[str]:
        """Names of the numbers that its metric gives: averages, and those of each kind of question."""
        kinds = sorted({question.kind for question in self.questions.questions})
        return list(dict.fromkeys([*metric_choice(self.task).component.averages, *kinds]))


class TasksInTraining:
    """Scores a model on tasks while it is trained; see TrainingEvaluation.

    Args:
        asked: the tasks with their questions.
        precision: that of the training.
        ranks: the ranks of the training, which share the questions.
    """

    def __init__(self, asked: Sequence[AskedInTraining], precision: str, ranks: Ranks) -> None:
        self.asked, self._precision, self._ranks = asked, precision, ranks
        self.higher_is_better: Mapping[str, bool] = {
            _name(task, number): bool(metric_choice(task).component.higher_is_better)
            for task, questions in asked
            for number in AskedInTraining(task, questions).numbers
        }
        self.identities: Mapping[str, str] = {
            f"the questions of the task {task.name}": config_hash(
                [questions.identity, as_plain(task.answer), as_plain(task.metric)]
            )
            for task, questions in asked
        }
        self.counts: Mapping[str, int] = {task.name: len(questions.questions) for task, questions in asked}
        self.primary: Sequence[str] = [_name(task, primary_of(task)) for task, _ in asked]

    def scores(
        self, stage: StageInterface, answered: Callable[[], None], stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Scores the model of a stage; see TrainingEvaluation.

        Raises:
            DataError: an image cannot be read, or a prompt leaves no room for an answer.
            PeerFailedError: another rank has failed.
        """
        assert isinstance(stage, LanguageStage)
        loaded = stage.answering()
        found: dict[str, float] = {}
        asking = self._asking(stage, answered, stopped)
        for task, questions in self.asked:
            try:
                with stage.sharded.gathered_root() if stage.sharded else nullcontext():
                    result = score_task(loaded, task, questions, asking)
            except StoppedAnswering:
                return None
            found |= {
                name: score
                for name, score in named_scores([result], FIRST)
                if name in self.higher_is_better
            }
        return self._ranks.broadcast_from_rank0(lambda: found)  # a judge may answer the ranks differently

    def _asking(self, stage: LanguageStage, answered: Callable[[], None], stopped: Callable[[], bool]) -> Asking:
        """Returns the way in which questions are asked.

        Ranks share the questions. If the model is sharded, all of them answer each question together.
        """
        trained = sum(parameter.nbytes for parameter in stage.parameters() if parameter.requires_grad)
        return Asking(
            self._precision,
            Ranks() if stage.sharded else self._ranks,
            progress=lambda done, total: answered(),
            sampling={"synced_gpus": True} if stage.sharded else {},
            reserved=GRADIENT_AND_MOMENTS * trained,
            stopped=stopped,
        )


def open_evaluation(experiment: ExperimentConfig, ranks: Ranks) -> TasksInTraining:
    """Reads the tasks of `trainer.evaluate` and the questions that are asked; one rank after the other may call it.

    Args:
        experiment: an experiment with `trainer.evaluate`.
        ranks: the ranks of the training.

    Raises:
        ConfigError: the stage or the strategy does not allow it, or a task has a mistake or no validation rows.
        DataError: rows or images cannot be read.
    """
    evaluate = experiment.trainer.evaluate
    asked: list[AskedInTraining] = []
    assert evaluate is not None
    _check_stage(experiment)
    for name in evaluate.tasks:
        try:
            task = on_validation(find_task(name, plugins=experiment.plugins))
            questions = _questions(task, evaluate.limit)
        except UserError as error:
            raise type(error)(f"{WHERE}.tasks: {error}") from None
        if any(other.task.name == task.name for other in asked):
            raise ConfigError(f"{WHERE}.tasks: two tasks are named {task.name}; give one of their files another `name`")
        asked.append(AskedInTraining(task, questions))
    return TasksInTraining(asked, experiment.trainer.precision, ranks)


def _name(task: TaskConfig, number: str) -> str:
    return logged_name(FIRST, task.name, number)


def _check_stage(experiment: ExperimentConfig) -> None:
    if not issubclass(experiment.stage.component, LanguageStage):
        raise ConfigError(f"{WHERE}: stage {experiment.stage.name} trains an encoder, which answers no questions")
    if experiment.trainer.cpu_offload:
        raise ConfigError(
            f"{WHERE}: with cpu_offload a sharded model does not generate; take cpu_offload=false, or evaluate the "
            "finished run with `fvl evaluate`"
        )


def _questions(task: TaskConfig, limit: int | None) -> TaskQuestions:
    """Reads the questions that are asked; errors name the section `validation` of the task's file."""
    known = metric_choice(task).component.averages
    if primary_of(task) not in known:
        raise unknown_name("number", primary_of(task), known, f"primary of task {task.name}")
    try:
        questions = read_questions(task, limit)
        kinds = {question.kind for question in questions.questions}
        task_metric(task, kinds).prepare(question.reference for question in questions.questions)
    except UserError as error:
        message = str(error).replace("data.files", "validation.files").replace("data.where", "validation.where")
        raise type(error)(f"task {task.name}: {message}") from None
    return questions
