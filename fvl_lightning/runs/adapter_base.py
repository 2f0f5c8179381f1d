"""The base model under the adapters of a run."""

from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import atomic_directory
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.modeling.adapters.folders import is_adapter_folder, is_model_folder
from fvl_lightning.modeling.configuration import FlorenceVLConfig, read_model_config
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.stages.base import Stage
from fvl_lightning.stages.language import LanguageStage
from fvl_lightning.training.lora import lora_components


def attach_trainable_adapters(stage: Stage, parents: list[dict[str, Any]], run: RunFolder | None) -> None:
    """Attaches adapters to the components that `trainable` calls lora.

    Their base is the one model folder that all weights came from. Where there is none, the model as it is now is saved
    as `base` in the run folder, since the adapters could not be loaded without it.

    Raises:
        ConfigError: a base must be saved, and there is no run folder.
    """
    if not lora_components(stage.trainable):
        return
    assert isinstance(stage, LanguageStage)
    base = _origin(stage, parents)
    if base is None:
        if run is None:
            raise ConfigError(
                "init_from: adapters without a run folder need one whole model as their base, name a model folder or "
                "a finished run that has all components, or use `train`"
            )
        base = run.path / "base"
        if not base.exists():
            with atomic_directory(base) as folder:
                stage.save_whole(folder)
    stage.adapt(base)


def _origin(stage: Stage, parents: list[dict[str, Any]]) -> Path | None:
    """Returns the model folder that holds the stage's model as it is now; None if no folder does."""
    last = parents[-1] if parents else {"components": []}
    if set(last["components"]) != set(COMPONENTS):
        return None
    folder = Path(last["run"]) if is_model_folder(Path(last["run"])) else RunFolder(Path(last["run"])).model
    if is_adapter_folder(folder):
        return None
    # The same weights compute something else under another configuration, with other prompts for instance.
    same = _computation(read_model_config(folder)) == _computation(stage.model.config)
    return folder if same else None


def _computation(config: FlorenceVLConfig) -> dict[str, Any]:
    """Returns the fields of a configuration that decide what the model computes."""
    fields = {key: value for key, value in config.to_diff_dict().items() if key in FlorenceVLConfig.__annotations__}
    text = config.get_text_config().to_diff_dict()
    for key in ("architectures", "dtype", "transformers_version"):
        text.pop(key, None)
    return fields | {"text_config": text}
