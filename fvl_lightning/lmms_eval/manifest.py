"""The entry point of the plugin."""

from typing import Any


def manifest() -> Any:
    """Returns lmms-eval's ModelManifest of `--model fvl_lightning`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    classes = f"{__package__}.wrapper"
    return ModelManifest(
        model_id="fvl_lightning",
        chat_class_path=f"{classes}.ChatWrapper",
        simple_class_path=f"{classes}.SimpleWrapper",
    )
