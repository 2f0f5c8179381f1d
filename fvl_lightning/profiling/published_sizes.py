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
from fvl_lightning.core.config.choices import inner_slots
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS

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
    """Yields the experiment with the sizes that its hub ids are published with, and a small tokenizer.

    Its stage can be built on the meta device while the context lasts. The shapes are right, because the size of a
    vocabulary is in the model's configuration. The configuration of an unknown hub id, or of a folder, is read there.
    """
    with TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), list(RELEASED_PROMPTS.values()))
        yield dataclasses.replace(experiment, **{slot: _offline(getattr(experiment, slot), folder) for slot in _SLOTS})


def _offline(choice: Any, tokenizer: str) -> Any:
    """Returns a component's choice with folders in place of hub ids, also in its members; the same without any."""
    if choice is None:
        return None
    fields = vars(choice.config)
    changed: dict[str, Any] = {
        key: {name: _offline(member, tokenizer) for name, member in fields[key].items()}
        for key in inner_slots(choice.config)
    }
    source = fields.get("pretrained")
    if isinstance(source, str) and "revision" in fields:
        changed |= {"tokenizer": tokenizer} if "tokenizer" in fields else {}
        if (folder := published_config(source)) is not None:
            changed |= {"pretrained": str(folder), "revision": None}
    return dataclasses.replace(choice, config=dataclasses.replace(choice.config, **changed))
