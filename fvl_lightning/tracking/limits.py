"""Names, sizes and statuses that MLflow accepts."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

Item = TypeVar("Item")
Status = Literal["FINISHED", "FAILED", "KILLED"]

BATCH_METRICS = 1000
BATCH_PARAMETERS = 100
"""How many MLflow accepts in one call."""
KEY_LENGTH = 250
PARAMETER_LENGTH = 6000
DIGEST_LENGTH = 36
"""Characters MLflow keeps."""


def clean_key(key: str) -> str:
    """`key` as MLflow takes it: what it refuses becomes an underscore (brackets, say), and paths are made plain."""
    parts = (re.sub(r"[^\w.\- :]", "_", part) for part in key.split("/"))
    return "/".join(part for part in parts if part.strip("."))[:KEY_LENGTH] or "_"


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """`items`, at most `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
