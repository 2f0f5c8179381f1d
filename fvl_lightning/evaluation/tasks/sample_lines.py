"""Parses the lines of a file of samples, which lmms-eval's --log_samples or this kit has written."""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import nan
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from datamodules.sources.row_files import MAX_ROW_BYTES, open_file
from fvl_lightning.core.errors import DataError

KIT = "fvl_lightning"
"""Key of the fields that lmms-eval does not have."""
NO_SCORES = frozenset({
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "token_counts", "input",
    "input_media", KIT,
})  # fmt: skip
"""Keys of a line that hold no score of a metric."""


@dataclass(frozen=True)
class SampleRow:
    """One line of a file of samples."""

    line: int
    """Its number in the file, from 1 on."""
    doc_id: str
    """Number of the question in lmms-eval's data, as text."""
    output: str
    """The model's output; for a question with choices, a JSON list of their log-likelihoods."""
    prediction: str
    """The answer after lmms-eval's filters; for a question with choices, the letter of the most likely one."""
    answers: tuple[str, ...]
    """The reference answers."""
    scores: Mapping[str, float]
    """{metric: score} of the metrics whose value is a number."""
    prompt: str = ""
    """The text of the user's message, where the file has it."""
    doc: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the row in the data, where the file has them."""
    kit: Mapping[str, Any] = field(default_factory=dict)
    """The fields that only files of this kit have."""

    @property
    def id(self) -> str:
        """The name of the question: the kit's where the file has one, else `doc_id`."""
        return str(self.kit.get("id", self.doc_id))


def read_rows(path: Path) -> list[SampleRow]:
    """Returns all lines of a file that are not blank.

    Raises:
        DataError: the file cannot be read, is empty, has a line that is no sample, or a question twice.
    """
    rows = [_row(path, number, line) for number, line in _lines(path)]
    if not rows:
        raise DataError(f"{path} has no samples")
    seen: dict[str, int] = {}
    for row in rows:
        if (first := seen.setdefault(row.id, row.line)) != row.line:
            raise DataError(f"{path}: lines {first} and {row.line} both answer question {row.id}")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number and the text of every line that is not blank."""
    with open_file(path) as file:
        for number in count(1):
            line = file.readline(MAX_ROW_BYTES + 1)
            if len(line) > MAX_ROW_BYTES:
                raise DataError(f"line {number} of {path} is longer than the limit of {MAX_ROW_BYTES} bytes")
            if not line:
                return
            if line.strip():
                yield number, line


def _row(path: Path, number: int, line: bytes) -> SampleRow:
    """Parses a line; raises DataError where it is no sample."""
    where = f"line {number} of {path}"
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{where} is no JSON object; the file was cut or edited")
    for key in ("doc_id", "target", "filtered_resps"):
        if key not in values:
            raise DataError(f"{where} has no {key}, which lmms-eval writes with --log_samples")
    kit = values.get(KIT)
    kit = kit if isinstance(kit, dict) else {}
    output, prediction = _answer(where, values)
    return SampleRow(
        line=number,
        doc_id=str(values["doc_id"]),
        output=output,
        prediction=str(kit.get("prediction", prediction)),
        answers=tuple(map(str, kit["answers"])) if isinstance(kit.get("answers"), list) else _targets(values["target"]),
        scores=_scores(values),
        prompt=values["input"] if isinstance(values.get("input"), str) else "",
        doc=values["doc"] if isinstance(values.get("doc"), dict) else {},
        kit=kit,
    )


def _answer(where: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the output and the answer of a line; raises DataError if it has no answer or several."""
    filtered = _innermost(values["filtered_resps"])
    if isinstance(filtered, str):
        output = _innermost(values.get("resps", filtered))
        if isinstance(output, str):
            return output, filtered
        filtered = output
    losses = [_loss(entry) for entry in filtered] if isinstance(filtered, list) else []
    if losses and None not in losses:
        likelihoods = [-loss for loss in losses if loss is not None]
        return json.dumps(likelihoods), option_letter(likelihoods.index(max(likelihoods)))
    found = f"{len(filtered)} answers" if isinstance(filtered, list) else f"an answer of type {type(filtered).__name__}"
    raise DataError(f"{where} has {found} to its question, expected one text, or a loss for every choice")


def _innermost(values: Any) -> Any:
    """Unwraps nested lists of one entry each."""
    while isinstance(values, list) and len(values) == 1:
        values = values[0]
    return values


def _loss(entry: Any) -> float | None:
    """Returns the loss of a choice, which lmms-eval writes as a pair (loss, greedy) or its text; else None."""
    if isinstance(entry, str):
        try:
            entry = ast.literal_eval(entry)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        return None
    try:
        return float(entry[0])
    except (TypeError, ValueError):
        return None


def _targets(target: Any) -> tuple[str, ...]:
    """Returns the reference answers in a target; lmms-eval writes a list of them as text, too."""
    text = str(target)
    if text.startswith("["):
        try:
            parsed = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parsed = None
        if isinstance(parsed, list):
            return tuple(map(str, parsed))
    return (text,)


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns {metric: score}; some tasks of lmms-eval write an object with a score in it."""
    found = {}
    for key, value in values.items():
        number = value.get("score") if isinstance(value, dict) else value
        if key not in NO_SCORES and isinstance(number, int | float):
            found[key] = float(number)
        elif key not in NO_SCORES and value is None:
            found[key] = nan
    return found


def option_letter(number: int) -> str:
    """Returns the letter of option `number` (from 0 on); after Z, its number from 1 on."""
    return ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)
