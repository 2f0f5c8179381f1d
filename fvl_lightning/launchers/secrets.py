"""Passwords and keys have no place in a command line, which is written into scripts and lists of processes."""

import os
import re
from collections.abc import Iterable

from fvl_lightning.core.errors import ConfigError

# Upper case alone: `encoder.pooled_token=drop` and `tokenizer=` are no secrets.
_NAME = r"[A-Z0-9_]*(?:TOKEN|PASSWORD|SECRET|CREDENTIALS?|API_KEY|ACCESS_KEY)[A-Z0-9_]*"
_GIVEN = re.compile(rf"(?:^|[^\w])(?:{_NAME}|\w*(?:password|secret|api_key|access_key))\s*[=:]\s*\S")
_ADDRESS = re.compile(r"://[^/\s@]*:[^/\s@]+@")
_KNOWN = re.compile(r"\b(?:hf_\w{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_\w{20,})")
_SHORTEST = 8
"""Characters of a variable's value from which on its occurrence is no chance."""


def refuse_secrets(words: Iterable[str]) -> None:
    """ConfigError for a word that holds a secret: by its name, as a password in an address, or from the environment."""
    named = re.compile(_NAME)
    kept = [value for name, value in os.environ.items() if named.fullmatch(name) and len(value) >= _SHORTEST]
    for word in words:
        if any(looks.search(word) for looks in (_GIVEN, _ADDRESS, _KNOWN)) or any(value in word for value in kept):
            raise ConfigError(
                f"{word.partition('=')[0].partition('://')[0]}: this word holds a password or key, which would be "
                "written down; leave it out and export it as a variable, such as MLFLOW_TRACKING_PASSWORD or HF_TOKEN"
            )
