"""The identity of a run: its configuration, and the content of its plugins, shards, weights and tokenizers."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.storage.content_hash import folder_hash
from fvl_lightning.core.config.fields import defaults_of, differences, keys_that_change
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.plugins import plugin_hashes

ACCUMULATE = "accumulate"
"""Key of `trainer`: the batches of a step."""


@dataclass(frozen=True)
class RunIdentity:
    """A configuration to compare runs with, and the keys at which they may differ."""

    config: Mapping[str, Any]
    """The resolved configuration as plain values."""
    nothing: Set[str] = frozenset()
    """Dotted keys that do not change what training computes, such as data.workers."""
    placement: Set[str] = frozenset()
    """Dotted keys that decide only on which devices the same samples are computed."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """{description of an input: the hash of its content}."""
    defaults: Mapping[str, Callable[[], bool]] = field(default_factory=dict)
    """Keys at their default, and whether a configuration of an earlier version without the key meant that."""

    @classmethod
    def of(cls, experiment: ExperimentConfig, data: str | None = None) -> "RunIdentity":
        """Returns the identity of a checked experiment; `data` is the hash of the content of its shards."""
        inputs = input_hashes(experiment)
        return cls(
            as_plain(experiment),
            keys_that_change(experiment, "nothing"),
            keys_that_change(experiment, "placement"),
            inputs if data is None else {**inputs, "the content of the shards": data},
            defaults_of(experiment),
        )

    def changed_keys(self, config: Mapping[str, Any]) -> set[str]:
        """Returns the keys at which a run's `config` differs, without those that change nothing.

        A key that did not exist when the run started is taken to have its default, if the default does what was done
        before.
        """
        changed = set(differences(config, self.config)) - self.nothing
        new = {key for key in changed & set(self.defaults) if _is_absent(config, key)}
        return changed - {key for key in new if self.defaults[key]()}

    def changed_results(self, config: Mapping[str, Any], finished: bool = False) -> set[str]:
        """Returns the changed keys, without those that decide where the same samples are computed.

        Args:
            config: the configuration of a run.
            finished: whether that run is not resumed, so that only the samples of a whole step must be the same, and
                not those of every accumulated batch.
        """
        changed = self.changed_keys(config)
        if changed & self.placement and _global_rows(config) == _global_rows(self.config):
            changed -= self.placement
        if finished and _global_rows(config, ACCUMULATE) == _global_rows(self.config, ACCUMULATE):
            changed -= {*self.placement, f"trainer.{ACCUMULATE}"}
        return changed

    def changed_inputs(self, info: Mapping[str, Any]) -> list[str]:
        """Returns the inputs that differ in a run's `info` (run.json); one that only one of them has is ignored."""
        before = info.get("inputs", {})
        return [name for name, content in self.inputs.items() if before.get(name, content) != content]

    def check_resumable(self, config: Mapping[str, Any], info: Mapping[str, Any], run: str) -> None:
        """Raises ConfigError or DataError unless a run with this `config` and `info` can be resumed with this identity.

        The devices may differ as long as all their batches together have the same number of rows, since the samples of
        each step are then the same.
        """
        if changed := self.changed_results(config):
            keys = ", ".join(sorted(changed))
            raise ConfigError(
                f"--resume: {run} was started with another configuration, at {keys}; give what it was, or start a new "
                "run without --resume"
            )
        if inputs := self.changed_inputs(info):
            raise DataError(
                f"--resume: since {run} was started, {' and '.join(inputs)} changed; put it back, or start a new run "
                "without --resume"
            )


def input_hashes(experiment: ExperimentConfig) -> dict[str, str]:
    """Returns {description: hash} of the inputs whose content can change under the same name.

    They are the experiment's plugins, the files of the tasks that it evaluates on, and local folders: those of
    `init_from`, and those of weights and tokenizers that its slots name. A large file is hashed by some of its blocks.
    """
    found = {f"the code of {name}": code for name, code in plugin_hashes(experiment.plugins).items()}
    for name in sorted({*_named_folders(as_plain(experiment)), *experiment.init_from}):
        folder = Path(name) / "model" if (Path(name) / "run.json").is_file() else Path(name)
        if folder.is_dir():
            found[f"the files of {name}"] = folder_hash(folder)
    for task in experiment.trainer.evaluate.tasks if experiment.trainer.evaluate else ():
        if Path(task).is_file():
            found[f"the file of the task {task}"] = hashlib.sha256(Path(task).read_bytes()).hexdigest()[:16]
    return found


def _named_folders(plain: Any) -> Iterator[str]:
    """Yields the values of all keys `pretrained` and `tokenizer`, also in nested slots."""
    for key, value in plain.items() if isinstance(plain, Mapping) else ():
        if key in ("pretrained", "tokenizer") and isinstance(value, str):
            yield value
        yield from _named_folders(value)


def _is_absent(config: Mapping[str, Any], key: str) -> bool:
    """Returns whether the mapping that would contain `key` exists and lacks it."""
    outer, _, name = key.rpartition(".")
    for part in outer.split(".") if outer else ():
        config = config.get(part)  # type: ignore[assignment]
        if not isinstance(config, Mapping):
            return False
    return name not in config


def _global_rows(config: Mapping[str, Any], *factors: str) -> int | None:
    """Returns the samples of all devices per batch, times further numbers of `trainer`; None where one is missing."""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        return None
    counts = [trainer.get("batch_size"), trainer.get("devices", 1), trainer.get("nodes", 1), *map(trainer.get, factors)]
    return math.prod(counts) if all(isinstance(count, int) for count in counts) else None
