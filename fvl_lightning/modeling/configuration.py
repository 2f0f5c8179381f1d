"""The configuration that is saved with a model and from which it is built again, without any other file."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from fvl_lightning.core.config.loading import Choice, choose


class FlorenceVLConfig(PreTrainedConfig):
    """The slots as `{name: ..., <resolved fields>}`, and the language model's own configuration as `text_config`."""

    model_type = "florence_vl"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}  # noqa: RUF012

    keys_to_ignore_at_inference = [  # noqa: RUF012 - transformers' Trainer adds a list to it; logits are predictions
        "past_key_values", "loss_sum", "tokens", "correct", "dataset_sums", "dataset_tokens", "diagnostics",
    ]

    encoder: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    language_model: dict[str, Any] | None = None
    normalize_sources: bool = False
    normalize_output: bool = False
    image_token_id: int = 0
    text_config: dict[str, Any] | PreTrainedConfig | None = None

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head shares the weights of the token table; held once, in `text_config`."""
        return bool(getattr(self.get_text_config(), "tie_word_embeddings", False))

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, tied: bool) -> None:
        self.get_text_config().tie_word_embeddings = tied

    @property
    def vocab_size(self) -> int:
        """Rows of the token table; held once, in `text_config`, where resizing changes it and peft compares it."""
        return self.get_text_config().vocab_size

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, and `tie_word_embeddings`, which peft looks for here."""
        return super().to_dict() | {"tie_word_embeddings": self.tie_word_embeddings}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what is saved: `text_config` alone says whether the head is tied."""
        fields = super().to_diff_dict()
        del fields["tie_word_embeddings"]
        return fields

    def choice(self, slot: str) -> Choice:
        """What fills `slot`, checked."""
        entry = dict(getattr(self, slot))
        if slot == "language_model":
            # Held once, as text_config, where transformers' generation looks for it.
            text = self.get_text_config()
            entry["model"] = text.to_diff_dict()
            if text._attn_implementation not in (None, "sdpa"):  # some models take another only when they are built
                entry["model"]["attn_implementation"] = text._attn_implementation
        return choose(slot, entry, f"{slot} in the model's configuration")


AutoConfig.register(FlorenceVLConfig.model_type, FlorenceVLConfig)
