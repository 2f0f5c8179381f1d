"""Scores a model on a task, with prompts and images as in training; the metric scores the cleaned answers."""

import dataclasses
import json
from collections.abc import Sequence
from string import ascii_uppercase

from torch import Tensor
from torchmetrics import Metric

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.question_form import QuestionForm
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, answer_prompts, most_likely
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.robustness.variations import Variation
from fvl_lightning.evaluation.statistics.aggregates import aggregate
from fvl_lightning.evaluation.tasks.checks import metric_choice
from fvl_lightning.evaluation.tasks.cleaning import clean
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.question import ImageSizes, QuestionSet, TaskQuestion
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample
from fvl_lightning.inference.generation import positions
from fvl_lightning.inference.likelihood import answer_ids
from fvl_lightning.modeling.build import LoadedModel


def score_task(
    loaded: LoadedModel,
    task: TaskConfig,
    questions: QuestionSet,
    asking: Asking,
    variation: Variation | None = None,
) -> TaskResult:
    """Asks a model the questions of a task and scores its answers; all ranks must call it, with equal results.

    Args:
        loaded: the model, on its device, with its processor.
        task: the task.
        questions: its questions, with the prompt of the variation.
        asking: precision, ranks and so on; length and stops of the answers are those of the task.
        variation: a control or corruption that changes the images.

    Raises:
        DataError: a prompt leaves no room for an answer, an image cannot be read, or the metric cannot compare with a
            reference.
        PeerFailedError: another rank has failed.
    """
    asked = variation.questions(questions.questions) if variation else questions.questions
    # What cannot be scored is refused before hours of answers.
    task_metric(task, {question.kind for question in asked}).prepare(question.reference for question in asked)
    form, encoder = QuestionForm.read(loaded.processor.asking), loaded.processor.encoder
    reader = loaded.processor.image_processor.reader
    sizes = ImageSizes(questions, reader.tiling)
    prompts = [_prompt(encoder, form, task, question, positions(loaded), sizes) for question in asked]

    def read_pixels(numbers: Sequence[int]) -> Tensor:
        squares = []
        for number in numbers:
            encoded = questions.image(number)
            try:
                image = reader.decode(encoded)
            except DataError as error:
                raise DataError(f"task {task.title}, {questions.where(number)}: its image: {error}") from None
            squares.append(reader.cut(variation.image(image) if variation else image))
        return reader.pixels(squares)

    varied = variation.name if variation else ""
    identity = json.dumps([questions.identity, varied, reader.identity()], default=str)
    asking = dataclasses.replace(asking, tokens=task.answer.tokens, stop=tuple(task.answer.stop))
    return judged(task, questions, answer_prompts(loaded, prompts, read_pixels, asking, identity), varied)


def judged(task: TaskConfig, questions: QuestionSet, outputs: Sequence[str], variation: str = "") -> TaskResult:
    """Cleans and scores the outputs of a model by the task's settings, and returns the result.

    Args:
        task: the task.
        questions: its questions.
        outputs: what the model wrote, question by question, see TaskSample.
        variation: the name of the variation under which they were asked.
    """
    asked = questions.questions
    metric = task_metric(task, {question.kind for question in asked})
    metric.prepare(question.reference for question in asked)
    samples = []
    for question, output in zip(asked, outputs, strict=True):
        prediction = _prediction(task, output)
        samples.append(
            TaskSample(
                id=question.id,
                output=output,
                prediction=prediction,
                score=metric.score_answer(prediction, question.reference),
                reference=question.reference,
                kind=question.kind,
                cluster=question.cluster,
                slices=question.slices,
                prompt=_text(question),
            )
        )
    return TaskResult(
        task=task.name,
        title=task.title,
        metric=metric_choice(task).name,
        primary=primary_of(task),
        scores=aggregate(metric, samples),
        samples=samples,
        identity=questions.identity,
        variation=variation,
    )


def task_metric(task: TaskConfig, kinds: set[str]) -> AnswerMetric:
    """Builds the metric of a task with its options, for one process that has all answers.

    Raises:
        ConfigError: there is no such metric or option.
    """
    choice = metric_choice(task)
    metric: AnswerMetric = choice.component(choice.config, kinds)
    for part in metric.modules():
        if isinstance(part, Metric):  # torchmetrics would add the answers of all ranks, and wait for them
            part.distributed_available_fn = lambda: False
    return metric


def primary_of(task: TaskConfig) -> str:
    """Returns the name of a task's primary number: the one in its file, or else the metric's first."""
    return task.primary or next(iter(metric_choice(task).component.averages))


def _prompt(
    encoder: ConversationEncoder,
    form: QuestionForm,
    task: TaskConfig,
    question: TaskQuestion,
    limit: int,
    sizes: ImageSizes,
) -> AskedPrompt:
    messages, tiles = sizes.apply(form.apply(question.messages), question.images)
    ids = encoder.prompt(messages)
    if len(ids) >= limit:
        raise DataError(
            f"task {task.title}, question {question.id}: the prompt has {len(ids)} tokens with its images, the model "
            f"has {limit} positions for prompt and answer"
        )
    choices: tuple[Sequence[int], ...] = ()
    if task.answer.by == "likelihood":
        choices = tuple(answer_ids(encoder, messages, ids, choice) for choice in question.reference.choices)
    return AskedPrompt(ids, question.images, choices, tiles, encoder.question(messages))


def _prediction(task: TaskConfig, output: str) -> str:
    if task.answer.by == "likelihood":
        return ascii_uppercase[most_likely(output)]
    return clean(output, task.answer.clean)


def _text(question: TaskQuestion) -> str:
    content = question.messages[-1]["content"]
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")
