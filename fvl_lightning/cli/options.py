"""Arguments and options that several commands have, and advice where an override is written as an option."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from datamodules.building.config import BuildConfig
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.known_keys import CLOSE, meant_key
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.plugins import OWN

Model = Annotated[str, typer.Argument(help="Run (folder or MLflow id), or a model folder, as `fvl import` makes it.")]
Adapter = Annotated[str | None, typer.Option(help="Adapter on the model: a run or a folder, or NAME=FOLDER.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="Adapter on the model: a run or a folder, or NAME=FOLDER; repeat it for several, the first is active."
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        help="File or module with components of the model, imported first; `own`, or no value, for the copies in the "
        "model's folder or those that its run names. It runs their code."
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")]
Experiment = Annotated[Path, typer.Argument(help="Experiment file, such as experiments/demo/finetune.yaml.")]

OVERRIDDEN: Mapping[tuple[str, ...], Any] = {
    ("train",): ExperimentConfig,
    ("launch",): ExperimentConfig,
    ("show",): ExperimentConfig,
    ("doctor",): ExperimentConfig,
    ("compare",): ComparisonConfig,
    ("shards", "build"): BuildConfig,
    ("shards", "order"): ExperimentConfig,
}
"""The commands that take key=value overrides, and the dataclass whose keys these are."""


def with_own_plugins(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `own` after a --plugins that has no value."""
    words: list[str] = []
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        words += [word, OWN] if word == "--plugins" and following.startswith("-") else [word]
    return words


def as_overrides(arguments: Sequence[str], unknown: str | None) -> str:
    """Returns the message for a command in which an override is written as the option `unknown`; "" where it is not.

    `--fusion attention`, `--trainer.max-steps=3` and `--seeds 0 1` are fusion=attention, trainer.max_steps=3 and
    "seeds=[0,1]".
    """
    schema = next((found for verb, found in OVERRIDDEN.items() if tuple(arguments[: len(verb)]) == verb), None)
    for number, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if schema is None or option != unknown or not key:
            continue
        known = [field.name for field in dataclasses.fields(schema)]
        head = key.partition(".")[0]
        meant = key if head in known else meant_key(key, known, schema, {}, at_least=CLOSE)
        if meant is not None:
            values = (
                [value]
                if equals
                else list(takewhile(lambda word: word[:2] != "--" and "=" not in word, arguments[number + 1 :]))
            )
            shown = values[0] if len(values) == 1 else f"[{','.join(values)}]" if values else "true"
            override = shlex.quote(f"{meant}={shown}").replace("'", '"')
            return f"{option}: this is no option; settings are written key=value, without dashes: {override}"
    return ""
