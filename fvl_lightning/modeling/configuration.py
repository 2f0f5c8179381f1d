"""The configuration that is saved with a model, and from which the model is rebuilt without any other file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from fvl_lightning.core.config.loading import Choice, choose
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.pretrained import open_saved
from fvl_lightning.core.registry import names
from fvl_lightning.core.weight_files import read_json
from fvl_lightning.modeling.plugin_record import read_record, record_of, unknown_component, warn_of_other_code


class FlorenceVLConfig(PreTrainedConfig):
    """The slots as `{name: ..., <resolved fields>}`, and the language model's own configuration as `text_config`."""

    model_type = "florence_vl"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}  # noqa: RUF012

    keys_to_ignore_at_inference = [  # noqa: RUF012 - transformers' Trainer adds a list to it; logits are predictions
        "past_key_values",
        "loss_sum",
        "tokens",
        "correct",
        "dataset_sums",
        "dataset_tokens",
        "diagnostics",
    ]

    encoder: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    language_model: dict[str, Any] | None = None
    normalize_sources: bool = False
    normalize_output: bool = False
    source_dropout: float = 0.0
    fused_sources: list[str] | None = None
    image_token_id: int = 0
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    plugins: list[dict[str, Any]] | None = None

    @property
    def tie_word_embeddings(self) -> bool:
        """Returns whether the head shares the weights of the token embeddings, as `text_config` says."""
        return bool(getattr(self.get_text_config(), "tie_word_embeddings", False))

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, tied: bool) -> None:
        self.get_text_config().tie_word_embeddings = tied

    @property
    def vocab_size(self) -> int:
        """The rows of the token embeddings, as `text_config` says, which resizing changes and peft compares."""
        return self.get_text_config().vocab_size

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, and `tie_word_embeddings`, which peft expects here."""
        return super().to_dict() | {"tie_word_embeddings": self.tie_word_embeddings}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the fields that are saved; only `text_config` says whether the head is tied."""
        fields = super().to_diff_dict()
        del fields["tie_word_embeddings"]
        return fields

    def choice(self, slot: str) -> Choice:
        """Returns the component of `slot` with its checked Config."""
        entry = getattr(self, slot)
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{slot} in the model's configuration: expected a mapping with a name, found {entry!r}")
        entry = dict(entry)
        if slot == "language_model":
            # transformers' generation expects it in text_config, so that it is held only there.
            text = self.get_text_config()
            entry["model"] = text.to_diff_dict()
            if text._attn_implementation not in (None, "sdpa"):  # some models accept it only when built
                entry["model"]["attn_implementation"] = text._attn_implementation
        where, name = f"{slot} in the model's configuration", entry.get("name")
        if isinstance(name, str) and name not in names(slot):
            raise unknown_component(slot, name, read_record(self.plugins, "the model's configuration"), where)
        return choose(slot, entry, where)

    def record_plugins(self) -> None:
        """Names the plugins of the components, if nothing does; else logs a warning where their code has changed."""
        chosen = {slot: getattr(self, slot)["name"] for slot in COMPONENTS if getattr(self, slot)}
        present = record_of(chosen)
        if self.plugins is None:
            self.plugins = present or None
        else:
            warn_of_other_code(read_record(self.plugins, "the model's configuration"), present)


def read_model_config(folder: Path) -> FlorenceVLConfig:
    """Returns the configuration in a model folder.

    Raises:
        ConfigError: a slot is wrong.
        DataError: it cannot be read, or is of another kind of model.
    """
    path = folder / "config.json"
    model_type = read_json(path).get("model_type")
    if model_type != FlorenceVLConfig.model_type:
        raise DataError(f"{path} is of a model of type {model_type!r}, expected '{FlorenceVLConfig.model_type}'")
    config: FlorenceVLConfig = open_saved(FlorenceVLConfig, folder, "the configuration", DataError)
    if not isinstance(config.image_token_id, int):
        raise DataError(f"{path}: image_token_id is {config.image_token_id!r}, expected a token id")
    for slot in COMPONENTS:
        config.choice(slot)
    return config


AutoConfig.register(FlorenceVLConfig.model_type, FlorenceVLConfig)
