"""The identity of a run: its configuration, and the content of its plugins, shards, weights and tokenizers."""

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.storage.content_hash import folder_hash
from fvl_lightning.core.config.fields import defaults_of, keys_that_change
from fvl_lightning.core.config.loading import as_plain, differences
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.plugins import plugin_hashes


@dataclass(frozen=True)
class RunIdentity:
    """A configuration that runs are compared with, and what of it may be another."""

    config: Mapping[str, Any]
    """Plain, resolved."""
    nothing: Set[str] = frozenset()
    """Dotted keys that change nothing of what training computes, such as data.workers."""
    placement: Set[str] = frozenset()
    """Keys that say where the same samples are computed."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """{what is read under a name, in words: the hash of its content}."""
    defaults: Mapping[str, Callable[[], bool]] = field(default_factory=dict)
    """Keys that have their default, and whether a configuration without them, of an earlier version, meant that."""

    @classmethod
    def of(cls, experiment: ExperimentConfig, data: str | None = None) -> "RunIdentity":
        """That of a checked experiment, whose plugins are imported; `data` is the hash of its data's content."""
        inputs = input_hashes(experiment)
        return cls(
            as_plain(experiment),
            keys_that_change(experiment, "nothing"),
            keys_that_change(experiment, "placement"),
            inputs if data is None else {**inputs, "the content of the shards": data},
            defaults_of(experiment),
        )

    def changed_keys(self, config: Mapping[str, Any]) -> set[str]:
        """The keys at which a run's `config` differs, less those that change nothing.

        A key that was not there yet when the run started had its default, where that does what was done before.
        """
        changed = set(differences(config, self.config)) - self.nothing
        new = {key for key in changed & set(self.defaults) if _is_absent(config, key)}
        return changed - {key for key in new if self.defaults[key]()}

    def changed_inputs(self, info: Mapping[str, Any]) -> list[str]:
        """Which inputs a run's `info` (run.json) has otherwise; one that either does not know is not compared."""
        before = info.get("inputs", {})
        return [name for name, content in self.inputs.items() if before.get(name, content) != content]

    def check_resumable(self, config: Mapping[str, Any], info: Mapping[str, Any], run: str) -> None:
        """ConfigError or DataError unless a run with this `config` and `info` can go on as what this is.

        The devices may be others, with as many rows in all of their batches: the samples of each step stay the same.
        """
        changed = self.changed_keys(config)
        if changed & self.placement and _global_rows(config) == _global_rows(self.config):
            changed -= self.placement
        if changed:
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
    """{in words: hash} of what an experiment reads under names that stay: its plugins, and folders of this machine.

    Folders are those of weights and tokenizers that its slots name, and of what it starts from. Of a large file some
    blocks are read.
    """
    found = {f"the code of {name}": code for name, code in plugin_hashes(experiment.plugins).items()}
    for name in sorted({*_named_folders(as_plain(experiment)), *experiment.init_from}):
        folder = Path(name) / "model" if (Path(name) / "run.json").is_file() else Path(name)
        if folder.is_dir():
            found[f"the files of {name}"] = folder_hash(folder)
    return found


def _named_folders(plain: Any) -> Iterator[str]:
    """What stands anywhere under `pretrained` and `tokenizer`, in slots inside others too."""
    for key, value in plain.items() if isinstance(plain, Mapping) else ():
        if key in ("pretrained", "tokenizer") and isinstance(value, str):
            yield value
        yield from _named_folders(value)


def _is_absent(config: Mapping[str, Any], key: str) -> bool:
    """Whether what `key` stands in is there, and the key is not."""
    outer, _, name = key.rpartition(".")
    for part in outer.split(".") if outer else ():
        config = config.get(part)  # type: ignore[assignment]
        if not isinstance(config, Mapping):
            return False
    return name not in config


def _global_rows(config: Mapping[str, Any]) -> int:
    trainer = config["trainer"]
    return trainer["batch_size"] * trainer.get("devices", 1) * trainer.get("nodes", 1)
