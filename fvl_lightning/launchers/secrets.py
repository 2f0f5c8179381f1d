"""Refuses passwords and keys on a command line, which is written into scripts and process lists."""

import os
import re
from collections.abc import Iterable

from fvl_lightning.core.errors import ConfigError

# Upper case alone: `encoder.pooled_token=drop` and `tokenizer=` are not secrets.
_NAME = r"[A-Z0-9_]*(?:TOKEN|PASSWORD|SECRET|CREDENTIALS?|API_KEY|ACCESS_KEY)[A-Z0-9_]*"
_GIVEN = re.compile(rf"(?:^|[^\w])(?:{_NAME}|\w*(?:password|secret|api_key|access_key))\s*[=:]\s*\S")
_ADDRESS = re.compile(r"://[^/\s@]*:[^/\s@]+@")
_KNOWN = re.compile(r"\b(?:hf_\w{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_\w{20,})")
_MIN_CHARACTERS = 8
"""Length of a variable's value from which its occurrence in an argument cannot be by chance."""


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Raises ConfigError for an argument with a secret: by its name, in an address, or from the environment."""
    named = re.compile(_NAME)
    values = [value for name, value in os.environ.items() if named.fullmatch(name) and len(value) >= _MIN_CHARACTERS]
    for text in arguments:
        if any(form.search(text) for form in (_GIVEN, _ADDRESS, _KNOWN)) or any(value in text for value in values):
            raise ConfigError(
                f"{text.partition('=')[0].partition('://')[0]}: this argument contains a password or key, which would "
                "be written to disk; leave it out and export it as a variable, such as MLFLOW_TRACKING_PASSWORD or "
                "HF_TOKEN"
            )
