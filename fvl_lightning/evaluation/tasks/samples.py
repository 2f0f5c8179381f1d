"""Files of samples in the format of lmms-eval's --log_samples: JSON Lines with one object per question.

Tools for lmms-eval read the files of this kit; the key `fvl_lightning` holds the fields that lmms-eval does not have.
This module also reads files that lmms-eval has written, so that models which this kit cannot run can be compared.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.errors import DataError, unknown_name
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.tasks.question import ONE_KIND, TaskQuestion
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample
from fvl_lightning.evaluation.tasks.sample_lines import KIT, SampleRow, option_letter, read_rows

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 60
"""Characters of a text that a message shows."""


def write_samples(path: Path, result: TaskResult) -> None:
    """Writes the samples of a result to `path`, one line each in their order; the file is replaced as a whole.

    Raises:
        DataError: the file cannot be written; an earlier file is kept.
    """
    objects = [_line(number, result, sample) for number, sample in enumerate(result.samples)]
    lines = [json.dumps(line, ensure_ascii=False, default=str) for line in objects]
    # Half of a surrogate pair, which a text may hold and UTF-8 may not, is written as an escape.
    text = "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace").decode("utf-8")
    write_text_atomically(path, text)


def read_samples(path: Path, metric: str = "") -> list[TaskSample]:
    """Returns all samples of a file with the scores in it.

    Args:
        path: a file of this kit or of lmms-eval, of any model.
        metric: the key of the score; if empty, a line's only score is read, and NaN if it has none or several.

    Raises:
        DataError: the file cannot be read, is empty, has a line that is no sample, or a question twice.
        ConfigError: a line has no score of that name.
    """
    return [_sample(path, row, metric) for row in read_rows(path)]


def outputs_for(path: Path, questions: Sequence[TaskQuestion]) -> list[str]:
    """Returns the outputs in a file for these questions, in their order.

    A file of this kit names its questions. In one of lmms-eval, `doc_id` is the number of the question in the data,
    from 0 on. Reference answers and texts must match the questions. A warning counts the answers to other questions.

    Raises:
        DataError: the file cannot be read, lacks a question, or has a line that belongs to another question.
    """
    rows = read_rows(path)
    by_id, ids = {row.id: row for row in rows}, {question.id for question in questions}
    named = any(row.kit for row in rows) or ids <= by_id.keys()
    keys = [question.id if named else str(number) for number, question in enumerate(questions)]
    if lacking := [key for key in keys if key not in by_id]:
        raise DataError(
            f"{path} has {len(rows)} questions and lacks {len(lacking)} of the {len(questions)} of the task, such as "
            f"{lacking[0]}; compare answers to the same questions"
        )
    if unused := by_id.keys() - set(keys):
        logger.warning("%s: %d of its %d answers are to other questions and are ignored", path, len(unused), len(rows))
    for key, question in zip(keys, questions, strict=True):
        _check_question(path, by_id[key], question)
    return [by_id[key].output for key in keys]


def check_same_questions(first: Sequence[TaskSample], second: Sequence[TaskSample], names: tuple[str, str]) -> None:
    """Checks that two lists of samples are answers to the same questions, in any order.

    Args:
        first: samples of one model.
        second: samples of another.
        names: their names in messages, such as their files.

    Raises:
        DataError: a question is in only one of them, or has different reference answers.
    """
    one, other = ({sample.id: sample for sample in samples} for samples in (first, second))
    alone = [key for key in one if key not in other], [key for key in other if key not in one]
    if any(alone):
        example = (alone[0] or alone[1])[0]
        raise DataError(
            f"{names[0]} and {names[1]} have different questions: {len(alone[0])} are only in the first and "
            f"{len(alone[1])} only in the second, such as {example}"
        )
    for key, sample in one.items():
        answers = sample.reference.answers, other[key].reference.answers
        if set(answers[0]) != set(answers[1]):
            raise DataError(
                f"{names[0]} and {names[1]} differ: the answer to {key} is {_shown(answers[0])} in the "
                f"first and {_shown(answers[1])} in the second"
            )


def _line(number: int, result: TaskResult, sample: TaskSample) -> dict[str, Any]:
    """Returns the JSON object of one line."""
    reference = sample.reference
    answers, likelihoods = list(reference.answers), _likelihoods(sample)
    doc = dict(reference.row)
    content = json.dumps([doc, reference.question, answers, reference.choices], sort_keys=True, default=str)
    filtered: Any = sample.prediction
    if likelihoods:  # as lmms-eval's losses, and whether the choice is the most likely one
        filtered = [[str(-value), str(value == max(likelihoods))] for value in likelihoods]
    return {
        "doc_id": number,
        "doc": doc,
        "target": answers[0] if len(answers) == 1 else str(answers),
        "resps": filtered if likelihoods else [sample.output],
        "filtered_resps": filtered,
        "token_counts": [None],
        "doc_hash": hashlib.sha256(content.encode()).hexdigest(),
        result.metric: sample.score if isfinite(sample.score) else None,
        "input": sample.prompt,
        KIT: {
            "id": sample.id,
            "task": result.task,
            "variation": result.variation,
            "prediction": sample.prediction,
            "kind": sample.kind,
            "cluster": sample.cluster,
            "slices": dict(sample.slices),
            "question": reference.question,
            "answers": answers,
            "choices": list(reference.choices),
            "group": reference.group,
        },
    }


def _likelihoods(sample: TaskSample) -> list[float]:
    """Returns the log-likelihoods of the choices in an output; an empty list for a generated text."""
    if not sample.reference.choices:
        return []
    try:
        values = json.loads(sample.output)
    except ValueError:
        return []
    is_list = isinstance(values, list) and all(isinstance(value, float) for value in values)
    return values if is_list and len(values) == len(sample.reference.choices) else []


def _sample(path: Path, row: SampleRow, metric: str) -> TaskSample:
    if metric and metric not in row.scores:
        raise unknown_name("score", metric, row.scores, f"line {row.line} of {path}")
    score = row.scores[metric] if metric else next(iter(row.scores.values())) if len(row.scores) == 1 else nan
    kit = row.kit
    slices = kit.get("slices")
    choices = kit.get("choices")
    reference = Reference(
        row.answers,
        question=str(kit.get("question", "")),
        choices=tuple(map(str, choices)) if isinstance(choices, list) else (),
        group=str(kit.get("group", "")),
        row=row.doc,
    )
    return TaskSample(
        id=row.id,
        output=row.output,
        prediction=row.prediction,
        score=score,
        reference=reference,
        kind=str(kit.get("kind", ONE_KIND)),
        cluster=str(kit.get("cluster", row.id)),  # without a cluster, every question counts by itself
        slices={str(key): str(value) for key, value in slices.items()} if isinstance(slices, dict) else {},
        prompt=row.prompt,
    )


def _check_question(path: Path, row: SampleRow, question: TaskQuestion) -> None:
    """Raises DataError if reference answer or text of a line differ from those of the question."""
    reference = question.reference
    accepted = {_folded(answer) for answer in reference.answers}
    for number, choice in enumerate(reference.choices):  # a target may be an option, its letter or its number
        names = {_folded(choice), _folded(option_letter(number)), str(number)}
        accepted |= names if names & accepted else set()
    if accepted and not {_folded(answer) for answer in row.answers} & accepted:
        raise DataError(
            f"line {row.line} of {path} does not belong to question {question.id} of the task: its answer is "
            f"{_shown(row.answers)}, that of the task {_shown(reference.answers)}"
        )
    if row.prompt and _folded(reference.question) not in _folded(row.prompt):
        raise DataError(
            f"line {row.line} of {path} does not belong to question {question.id} of the task: it asks "
            f"'{row.prompt[-SHOWN_CHARACTERS:]}', the task '{reference.question[:SHOWN_CHARACTERS]}'"
        )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _shown(answers: Sequence[str]) -> str:
    text = ", ".join(answers)
    return f"'{text}'" if len(text) <= SHOWN_CHARACTERS else f"'{text[:SHOWN_CHARACTERS]}...'"
