"""The base model under the adapters of a run or a folder."""

from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import atomic_directory
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.modeling.adapters.folders import is_adapter_folder, is_model_folder
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.stages.base import Stage
from fvl_lightning.stages.language import LanguageStage
from fvl_lightning.training.lora import adapted


def attach_trainable_adapters(stage: Stage, run: RunFolder, parents: list[dict[str, Any]]) -> None:
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
            with atomic_directory(base) as folder:
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
