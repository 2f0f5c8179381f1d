"""The loggers of `trainer.loggers`: what each is built from, and the checks before a training starts.

A registered logger is a Lightning logger that is built as `Class(config, run)`:

    @register("logger", "lines")
    class LinesLogger(Logger):
        @dataclass
        class Config: ...

        def __init__(self, config: Config, run: LoggedRun) -> None: ...

All of them exist on rank 0 only. Each gets every value that metrics.jsonl gets, with its step.
"""

import functools
import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.config.choices import Choice
from fvl_lightning.core.config.component_lists import ImportedClass, check_base
from fvl_lightning.core.errors import ConfigError, UserError, first_line, os_error_in_words

logger = logging.getLogger(__name__)

MLFLOW = "mlflow"
METHODS = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")
"""What the kit and Lightning call of a logger."""


@dataclass(frozen=True)
class LoggedRun:
    """A run, for its loggers."""

    folder: Path
    """The run folder; metrics.jsonl in it has what was logged so far."""
    name: str
    key: str
    """An identifier that no other run has, and that a resumed run keeps."""
    step: int
    """The optimiser step from which the run goes on, 0 for a new one."""
    config: Mapping[str, Any]
    """The resolved configuration as plain values."""


def check_loggers(loggers: Sequence[Choice]) -> None:
    """Raises ConfigError for a logger that is named twice, lacks its package, or is no Lightning logger."""
    twice = [name for name, count in Counter(choice.name for choice in loggers).items() if count > 1]
    for name in twice:
        if not any(isinstance(choice, ImportedClass) and choice.name == name for choice in loggers):
            raise ConfigError(f"trainer.loggers: {name} stands twice in the list")
    for choice in loggers:
        check_base(choice, Logger)
        if isinstance(choice, ImportedClass):
            choice.check(Logger, save_dir="")
        package = getattr(choice.component, "PACKAGE", None)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"trainer.loggers: {choice.name} needs the package {package}: pip install {package} (or the extra "
                f"fvl-lightning[{choice.name}])"
            )


def build_loggers(loggers: Sequence[Choice], run: LoggedRun) -> list[Logger]:
    """Returns the loggers but MLflow, which is sent what metrics.jsonl has (mlflow_live_sync.py).

    The folder of an imported logger is the run folder, unless `save_dir` is given.

    Raises:
        ConfigError: a logger cannot be built with its arguments.
    """
    built: list[Logger] = []
    for choice in loggers:
        if choice.name == MLFLOW:
            continue
        try:
            if isinstance(choice, ImportedClass):
                one = choice.build(Logger, save_dir=str(run.folder))
            else:
                one = choice.component(choice.config, run)
            one.log_hyperparams(dict(run.config))
        except UserError:
            raise
        except Exception as error:  # whatever another package raises without a login, a server or a disk
            raise ConfigError(f"trainer.loggers: {choice.name}: {type(error).__name__}: {first_line(error)}") from error
        for method in METHODS:
            setattr(one, method, _warning_of_errors(getattr(one, method), choice.name))
        built.append(one)
    return built


def _warning_of_errors(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns the method of a logger with a warning in place of a system error, since metrics.jsonl has the values.

    A full disk or a server that cannot be reached does not end a training; an error in the logger's own code does.
    """

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except OSError as error:  # errors of connections are among them
            problem = os_error_in_words(error)
            logger.warning("trainer.loggers: %s lacks values (%s); metrics.jsonl has them", name, problem)

    return call
