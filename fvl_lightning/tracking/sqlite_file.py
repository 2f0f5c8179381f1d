"""Checks of the sqlite file of an MLflow store."""

import contextlib
import os
import sqlite3
from pathlib import Path

from fvl_lightning.core.errors import DataError

SQLITE_MAGIC = b"SQLite format 3\0"


def check_sqlite(file: Path) -> None:
    """DataError unless `file` is a writable sqlite database that MLflow made, or an empty one."""
    if file.is_dir():
        raise DataError(f"tracking.uri: {file} is a folder, not an sqlite file; name a file in it such as mlflow.db")
    if not os.access(file, os.R_OK | os.W_OK):
        raise DataError(f"tracking.uri: {file} cannot be read and written by this user")
    with file.open("rb") as stream:
        magic = stream.read(len(SQLITE_MAGIC))
    if magic not in (b"", SQLITE_MAGIC):
        raise DataError(f"tracking.uri: {file} is not an sqlite database")
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise DataError(f"tracking.uri: {file} cannot be read as an sqlite database ({error})") from None
    if tables and "experiments" not in tables:
        raise DataError(f"tracking.uri: {file} is an sqlite database of something else, not an MLflow store")
