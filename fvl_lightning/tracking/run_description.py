"""Reads tracking.json, which a power cut or a person may have damaged."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.mlflow_sync import RunDescription


def read_description(values: Any, where: str) -> RunDescription:
    """Returns the description in the content of a tracking.json; keys of later versions are ignored.

    Args:
        values: the content.
        where: the file, for the message.

    Raises:
        DataError: a key is missing, or its value is of another type.
    """
    known = {part.name: part for part in fields(RunDescription)}
    given = {name: value for name, value in values.items() if name in known} if isinstance(values, dict) else {}
    lacking = [name for name, part in known.items() if part.default_factory is MISSING and name not in given]
    wrong = [name for name, value in given.items() if not _FORMS[name](value)]
    if lacking or wrong:
        raise DataError(f"{where} is damaged at '{(lacking + wrong)[0]}', so that the run cannot be sent to MLflow")
    return RunDescription(**given)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_dataset(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "digest", "source"))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())


def _are_tables(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in value.values()
    )


_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("uri", "experiment", "run_name", "key"), _is_text),
    "parent_run_id": lambda value: value is None or isinstance(value, str),
    **dict.fromkeys(("tags", "params", "config"), _is_mapping),
    "dataset": _is_dataset,
    "evaluated": lambda value: value == {} or _is_dataset(value),
    "results": _are_numbers,
    "tables": _are_tables,
}
"""What the values of tracking.json must be."""
