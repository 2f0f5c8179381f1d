"""Files of samples in the format of lmms-eval's --log_samples: one JSON object a line for every question.

Those of this kit are read by tools for lmms-eval; the key `fvl_lightning` holds what lmms-eval has no field for. Files
that lmms-eval writes, of any model, are read here, so that models which this kit cannot run are compared with those
that it can.
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
    """Replaces `path` by the samples of a result, a line each in their order.

    Raises:
        DataError: the file cannot be written; what was there is kept.
    """
    objects = [_line(number, result, sample) for number, sample in enumerate(result.samples)]
    lines = [json.dumps(line, ensure_ascii=False, default=str) for line in objects]
    # Half of a surrogate pair, which a text may hold and UTF-8 may not, is written as an escape.
    text = "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace").decode("utf-8")
    write_text_atomically(path, text)


def read_samples(path: Path, metric: str = "") -> list[TaskSample]:
    """Returns the samples of a file, every line of it, with the scores that stand in it.

    Args:
        path: a file of this kit or of lmms-eval, of any model.
        metric: the key of the score; empty where the file has one alone, and else scores are NaN.

    Raises:
        DataError: the file cannot be read, is empty, has a line that is no sample, or a question twice.
        ConfigError: a line has no score of that name.
    """
    return [_sample(path, row, metric) for row in read_rows(path)]


def outputs_for(path: Path, questions: Sequence[TaskQuestion]) -> list[str]:
    """Returns the outputs in a file for these questions, in their order.

    A file of this kit names its questions. In one of lmms-eval, `doc_id` is the number of the question in the data,
    from 0 on. Reference answers and texts must be those of the questions. Answers to others are counted in a warning.

    Raises:
        DataError: the file cannot be read, lacks a question, or has another one in its place.
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
        logger.warning("%s: %d of its %d answers are to questions that are not asked", path, len(unused), len(rows))
    for key, question in zip(keys, questions, strict=True):
        _check_question(path, by_id[key], question)
    return [by_id[key].output for key in keys]


def check_same_questions(first: Sequence[TaskSample], second: Sequence[TaskSample], names: tuple[str, str]) -> None:
    """Checks that two lists of samples are answers to the same questions, in any order.

    Args:
        first: samples of one model.
        second: samples of another.
        names: what messages call the two, such as their files.

    Raises:
        DataError: a question is in one of them alone, or has other reference answers.
    """
    one, other = ({sample.id: sample for sample in samples} for samples in (first, second))
    alone = [key for key in one if key not in other], [key for key in other if key not in one]
    if any(alone):
        example = (alone[0] or alone[1])[0]
        raise DataError(
            f"{names[0]} and {names[1]} have other questions: {len(alone[0])} stand in the first alone and "
            f"{len(alone[1])} in the second alone, such as {example}"
        )
    for key, sample in one.items():
        answers = sample.reference.answers, other[key].reference.answers
        if set(answers[0]) != set(answers[1]):
            raise DataError(
                f"{names[0]} and {names[1]} have other questions: the answer to {key} is {_shown(answers[0])} in the "
                f"first and {_shown(answers[1])} in the second"
            )


def _line(number: int, result: TaskResult, sample: TaskSample) -> dict[str, Any]:
    """Returns one line as an object."""
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
    """Returns the log-likelihoods of the choices in an output; none of a generated text."""
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
    """Raises DataError where a line has another answer or another text than the question."""
    reference = question.reference
    accepted = {_folded(answer) for answer in reference.answers}
    for number, choice in enumerate(reference.choices):  # a target may be an option, its letter or its number
        names = {_folded(choice), _folded(option_letter(number)), str(number)}
        accepted |= names if names & accepted else set()
    if accepted and not {_folded(answer) for answer in row.answers} & accepted:
        raise DataError(
            f"line {row.line} of {path} is of another question than {question.id} of the task: its answer is "
            f"{_shown(row.answers)}, that of the task {_shown(reference.answers)}"
        )
    if row.prompt and _folded(reference.question) not in _folded(row.prompt):
        raise DataError(
            f"line {row.line} of {path} is of another question than {question.id} of the task: it asks "
            f"'{row.prompt[-SHOWN_CHARACTERS:]}', the task '{reference.question[:SHOWN_CHARACTERS]}'"
        )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _shown(answers: Sequence[str]) -> str:
    text = ", ".join(answers)
    return f"'{text}'" if len(text) <= SHOWN_CHARACTERS else f"'{text[:SHOWN_CHARACTERS]}...'"
