"""Reads the questions of a task: rows of its files with a prompt, images and references."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from datamodules.encoding.messages import Message, image_parts
from datamodules.storage.sample import spread
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.task_rows.base import TaskRow, TaskRows
from fvl_lightning.evaluation.task_rows.fields import (
    check_names,
    is_filled,
    letter_of,
    options_at,
    plain_fields,
    text_at,
    texts_at,
    value_at,
)
from fvl_lightning.evaluation.task_rows.files import open_rows
from fvl_lightning.evaluation.task_rows.images import Numbers, RowImages
from fvl_lightning.evaluation.task_rows.named_images import open_named_images
from fvl_lightning.evaluation.task_rows.prompts import (
    CHOICE_LETTERS,
    CHOICES,
    Template,
    choices_text,
    letters_text,
    place_images,
)
from fvl_lightning.evaluation.task_rows.shards import MESSAGES
from fvl_lightning.evaluation.tasks.checks import check_task, listed_files
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.question import ONE_KIND, QuestionSet, TaskQuestion

_NO_KIND = "none"
"""Kind or slice of rows whose field for it is empty."""


def read_questions(task: TaskConfig, limit: int | None = None) -> "TaskQuestions":
    """Reads the questions of a task.

    Args:
        task: the task.
        limit: the largest number of questions, spread evenly over the rows; those of one `fields.group` stay together.
            None for all.

    Raises:
        ConfigError: a field that the rows do not have, or a prompt with a mistake.
        DataError: a file that is absent or damaged; a row without references, or with an image that cannot be decoded.
    """
    check_task(task)
    rows = open_rows(listed_files(task.data), _used(task))
    _check_fields(task, rows)
    asked = [row for row in rows.rows() if _is_asked(row, task)]
    if not asked:
        chosen = f" with {as_plain(task.data.where)}" if task.data.where else ""
        raise DataError(f"{rows.where} has no rows{chosen}")
    if limit is not None:
        asked = _first_of(asked, limit, task.fields.group)
    images = RowImages(rows, asked, task.fields.images, open_named_images(task.data.images))
    return TaskQuestions(task, asked, images, rows.kind_field)


class TaskQuestions(QuestionSet):
    """The questions of a task that rows of files describe.

    Raises:
        DataError: a row cannot become a question.
    """

    def __init__(self, task: TaskConfig, asked: Sequence[TaskRow], images: RowImages, kind_field: str) -> None:
        self._task, self._asked, self._images, self._kind_field = task, asked, images, kind_field
        self._prompt = Template(task.prompt, "prompt")
        self.questions = list(self._all())
        self._refuse_doubles()

    def image(self, number: int) -> bytes:
        """Returns an encoded image; see QuestionSet."""
        return self._images.read(number)

    def where(self, number: int) -> str:
        """Returns the file and the first row with an image, for messages."""
        return self._images.where(number)

    def with_prompt(self, prompt: str) -> "TaskQuestions":
        """Returns the same questions in another prompt, without reading files; raises DataError as TaskQuestions."""
        return TaskQuestions(replace(self._task, prompt=prompt), self._asked, self._images, self._kind_field)

    @cached_property
    def identity(self) -> str:
        """A hash of prompts, images, references, kinds, groups, clusters and slices, in order."""
        digest = hashlib.sha256()
        for question in self.questions:
            reference = question.reference
            parts = [
                question.id,
                question.messages,
                [self._images.hashes[number] for number in question.images],
                [reference.answers, reference.question, reference.choices, reference.group],
                [question.kind, question.cluster, sorted(question.slices.items())],
            ]
            digest.update(json.dumps(parts, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()[:16]

    def _all(self) -> Iterator[TaskQuestion]:
        for row, numbers in zip(self._asked, self._images.of_rows, strict=True):
            try:
                yield self._question(row, numbers)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None

    def _question(self, row: TaskRow, numbers: Numbers) -> TaskQuestion:
        fields, values = self._task.fields, row.values
        options = options_at(values, fields.choices)
        if self._task.answer.by == "likelihood" and not options:
            raise DataError(f"answer.by: likelihood needs options, and {', '.join(fields.choices)} has none")
        messages, shown = self._messages(values, options, numbers)
        id = text_at(values, fields.id) if fields.id else str(row.number)
        pictures = "+".join(self._images.hashes[number][:16] for number in shown) or id
        kind_field = fields.kind or self._kind_field
        return TaskQuestion(
            id,
            messages,
            shown,
            Reference(
                self._answers(values, options),
                text_at(values, fields.question) if fields.question else "",
                options,
                _joined(values, fields.group) if fields.group else pictures,
                plain_fields(values),
            ),
            _joined(values, kind_field) if kind_field else ONE_KIND,
            _joined(values, fields.cluster) if fields.cluster else pictures,
            {name: _joined(values, name) for name in fields.slices},
        )

    def _answers(self, values: Mapping[str, Any], options: tuple[str, ...]) -> tuple[str, ...]:
        fields = self._task.fields
        answers = [text for name in fields.answers for text in texts_at(values, name)]
        if not answers:
            named = ", ".join(fields.answers)
            raise DataError(f"no reference answer in {named}; the answers of a test split are often not public")
        answers = [fields.answer_names.get(answer, answer) for answer in answers]
        if options and fields.answers_as != "text":
            answers = [letter_of(answer, fields.answers_as, options) for answer in answers]
        return tuple(answers)

    def _messages(
        self, values: Mapping[str, Any], options: tuple[str, ...], numbers: Numbers
    ) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        """Returns the messages of a prompt, and the images that they show."""
        task, there = self._task, tuple(number for number in numbers if number is not None)
        asked = values.get(MESSAGES)
        if isinstance(asked, tuple) and task.prompt == "{question}" and not task.system:
            if image_parts(asked) != len(there):
                raise DataError(f"{image_parts(asked)} images are named in its messages, and it has {len(there)}")
            return asked, there
        special = {CHOICES: choices_text(options), CHOICE_LETTERS: letters_text(options)} if task.fields.choices else {}

        def text_of(name: str) -> str:
            return special[name] if name in special else _filled_text(values, name)

        parts, shown = place_images(self._prompt.render(text_of), numbers)
        if not parts:
            raise DataError("its prompt is empty")
        system: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
        return (*system, {"role": "user", "content": parts}), shown

    def _refuse_doubles(self) -> None:
        rows: dict[str, TaskRow] = {}
        for row, question in zip(self._asked, self.questions, strict=True):
            if question.id in rows:
                first, field = rows[question.id].where, self._task.fields.id
                raise DataError(f"{row.where}: the id '{question.id}' in {field} is that of {first}, too")
            rows[question.id] = row


def _used(task: TaskConfig) -> list[str]:
    """Returns the fields of rows that a task names."""
    fields = task.fields
    named = [fields.id, fields.question, *fields.images, *fields.answers, *fields.choices]
    named += [fields.kind, fields.group, fields.cluster, *fields.slices, *task.data.where]
    return [name for name in [*named, *_prompt_fields(task)] if name]


def _prompt_fields(task: TaskConfig) -> list[str]:
    special = {CHOICES, CHOICE_LETTERS} if task.fields.choices else set()
    names = (Template(prompt, "prompt").names for prompt in [task.prompt, *task.paraphrases])
    return sorted(frozenset().union(*names) - special)


def _check_fields(task: TaskConfig, rows: TaskRows) -> None:
    fields = task.fields
    one = {"id": fields.id, "question": fields.question, "kind": fields.kind, "group": fields.group}
    one["cluster"] = fields.cluster
    wanted: dict[str, Sequence[str]] = {f"fields.{key}": [name] for key, name in one.items() if name}
    for key in ("images", "answers", "choices", "slices"):
        wanted[f"fields.{key}"] = getattr(fields, key)
    wanted |= {"data.where": list(task.data.where), "prompt": _prompt_fields(task)}
    check_names(wanted, rows.fields, rows.where)


def _is_asked(row: TaskRow, task: TaskConfig) -> bool:
    """Returns whether a row has the values of data.where."""
    for name, wanted in task.data.where.items():
        allowed = {text for one in (wanted if isinstance(wanted, list) else [wanted]) for text in _ways_to_write(one)}
        if not allowed & set(texts_at(row.values, name)):
            return False
    return True


def _ways_to_write(value: Any) -> tuple[str, ...]:
    """Returns the texts that match a value of the task file; YAML reads yes and no as booleans."""
    if isinstance(value, bool):
        return ("True", "true", "Yes", "yes") if value else ("False", "false", "No", "no")
    return (str(value),)


def _first_of(asked: Sequence[TaskRow], limit: int, group: str) -> list[TaskRow]:
    """Returns `limit` rows spread evenly, in order; with groups, about as many rows of whole groups."""
    if not group:
        return [asked[number] for number in spread(len(asked), limit)]
    groups: dict[Any, list[TaskRow]] = {}
    for row in asked:
        groups.setdefault(str(value_at(row.values, group)), []).append(row)
    chosen = spread(len(groups), max(1, limit * len(groups) // len(asked)))
    together = list(groups.values())
    return sorted((row for number in chosen for row in together[number]), key=lambda row: row.number)


def _filled_text(values: Mapping[str, Any], name: str) -> str:
    return ", ".join(text for text in texts_at(values, name) if is_filled(text))


def _joined(values: Mapping[str, Any], name: str) -> str:
    return _filled_text(values, name) or _NO_KIND
