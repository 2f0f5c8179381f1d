"""The sizes of the hub's models that the presets name, so that a plan needs no hub.

`hub_configs/<owner>/<name>/config.json` has what a model is published with, as far as it decides shapes. A training
never reads these files: it takes the hub's.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.encoding.byte_level_bpe import save_tokenizer
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.prompts import RELEASED_PROMPTS

FOLDER = Path(__file__).parent / "hub_configs"
_SLOTS = ("encoder", "language_model")
"""Components that may name a hub id."""


def published_config(source: str) -> Path | None:
    """Returns the folder that has the config.json of a hub id; None for other ids, and for folders."""
    folder = FOLDER / source
    known = source.count("/") == 1 and not Path(source).exists() and (folder / "config.json").is_file()
    return folder if known and ".." not in source else None


@contextmanager
def without_hub(experiment: ExperimentConfig) -> Iterator[ExperimentConfig]:
    """Yields the experiment with the sizes that its hub ids are published with, and a small tokenizer for theirs.

    Its stage can be built on the meta device while the context lasts. The shapes are right, because the size of a
    vocabulary is in the model's configuration. A component that names no known hub id stays as it is.
    """
    with TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), list(RELEASED_PROMPTS.values()))
        changed = {slot: choice for slot in _SLOTS if (choice := _offline(getattr(experiment, slot), folder))}
        yield dataclasses.replace(experiment, **changed)


def _offline(choice: Any, tokenizer: str) -> Any:
    """Returns a component's choice with a folder in place of its hub id; None where nothing is replaced."""
    config = None if choice is None else choice.config
    source = vars(config).get("pretrained") if config is not None else None
    folder = published_config(source) if isinstance(source, str) else None
    if folder is None or "tokenizer" not in vars(config):
        return None
    offline = dataclasses.replace(config, pretrained=str(folder), revision=None, tokenizer=tokenizer)
    return dataclasses.replace(choice, config=offline)
