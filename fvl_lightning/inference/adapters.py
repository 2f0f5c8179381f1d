"""Adapters on the command line: the folder of the model under those of a training, and those a command is given."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import appearing
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.modeling.adapters.folders import (
    ADAPTER,
    attach_adapter,
    has_adapters,
    is_adapter_folder,
    use_adapter,
)
from fvl_lightning.modeling.build import Built
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.runs.folder import RunFolder, is_model_folder
from fvl_lightning.stages.base import Stage
from fvl_lightning.stages.language import LanguageStage
from fvl_lightning.training.lora import adapted

ADAPTER_HELP = "Adapter on the model: a run or a folder, or NAME=FOLDER."
ADAPTERS_HELP = f"{ADAPTER_HELP[:-1]}; again for several, of which the first is in use."


def put_on(built: Built, words: Sequence[str] | None) -> list[str]:
    """Puts the adapters of `--adapter` words on a model, the first one in use; returns all names, its own last.

    Raises:
        ConfigError: a word that names none, or a name that is taken.
        DataError: an adapter that cannot be read, or that was trained on another base.
    """
    own = [ADAPTER] if has_adapters(built.model) else []
    names: list[str] = []
    for word in words or ():
        name, folder = adapter_word(word)
        if name in names + own:
            raise ConfigError(f"--adapter {word}: there is a {name} already, write <another name>={folder}")
        attach_adapter(built.model, folder, name)
        names.append(name)
    if names:
        use_adapter(built.model, names[0])
    return names + own


def adapter_word(word: str) -> tuple[str, Path]:
    """Name and folder of `<name>=<folder>`, or of a folder, which is called by its last part; a run's is the run's."""
    name, equals, reference = word.partition("=")
    path = Path(os.path.expanduser(reference if equals else word))
    of_run = path.name == "model" and (path.parent / "run.json").is_file()
    name = name if equals else (path.parent if of_run else path).resolve().name
    folder = path / "model" if (path / "run.json").is_file() else path
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"--adapter {word}: expected <name>=<folder> with letters, digits, - and _ in the name")
    if not is_adapter_folder(folder):
        raise ConfigError(
            f"--adapter {word}: {folder} is no adapter's folder (it has no adapter_config.json); name a whole model "
            "as the model"
        )
    return name, folder


def give_adapters(stage: Stage, run: RunFolder, parents: list[dict[str, Any]]) -> None:
    """Puts adapters beside what is lora.

    Their base is the one model folder that all weights came from; where there is none, it is kept in the run's folder
    as `base`, or nobody could load what was trained.
    """
    if not adapted(stage.trainable):
        return
    assert isinstance(stage, LanguageStage)
    base = _origin(stage, parents)
    if base is None:
        base = run.path / "base"
        if not base.exists():
            with appearing(base) as folder:
                stage.save_whole(folder)
    stage.adapt(base)


def _origin(stage: Stage, parents: list[dict[str, Any]]) -> Path | None:
    """The model folder that holds the stage's model as it is now."""
    last = parents[-1] if parents else {"components": []}
    if set(last["components"]) != set(COMPONENTS):
        return None
    folder = Path(last["run"]) if is_model_folder(Path(last["run"])) else RunFolder(Path(last["run"])).model
    if is_adapter_folder(folder):
        return None
    # The same weights may be read in another way, with other prompts for instance.
    same = _says(FlorenceVLConfig.from_pretrained(folder)) == _says(stage.model.config)
    return folder if same else None


def _says(config: FlorenceVLConfig) -> dict[str, Any]:
    """What a configuration says of what is computed."""
    said = {key: value for key, value in config.to_diff_dict().items() if key in FlorenceVLConfig.__annotations__}
    text = config.get_text_config().to_diff_dict()
    for key in ("architectures", "dtype", "transformers_version"):
        text.pop(key, None)
    return said | {"text_config": text}
