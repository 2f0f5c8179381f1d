"""The methods that transformers expects of every model, for a model composed of components."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fvl_lightning.modeling.pretrained import FlorenceVLPreTrainedModel


class Body:
    """A model without its head, as tools of transformers ask for it by `base_model`: calls give hidden states."""

    def __init__(self, model: "ComposedModel") -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.run(*args, **kwargs)[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class ComposedModel(FlorenceVLPreTrainedModel):
    """Token table, head, attention and placement of a model with an `encoder` and a `language_model`.

    `run` is the model up to its head: the language model's output and diagnostics.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def compose(self) -> None:
        """Settles what concerns all parts, once they are built; before `post_init`."""
        self._share_text_config()
        self._no_split_modules, self._skip_keys_device_placement = self._placement()

    def _share_text_config(self) -> None:
        """Makes the language model's configuration and `text_config` one object, and hands on the attention wanted.

        Resizing, generation's masks of a static cache and `set_attn_implementation` change one and read the other.
        """
        asked = self.config.get_text_config()._attn_implementation
        self.config.text_config = self.language_model.model.config
        own = self.config._attn_implementation
        if (own, asked or own) != ("sdpa", "sdpa"):  # what components are built with
            self.set_attn_implementation({"": own, "text_config": asked or own})

    def _placement(self) -> tuple[set[str], set[str]]:
        """What accelerate needs to place parts on several devices: classes to keep whole, and inputs to leave alone.

        transformers asks direct children alone, which are no models of its own here.
        """
        whole = {type(block).__name__ for block in self.encoder.blocks()}
        skipped: set[str] = set()
        for module in self.modules():
            # A module that has both parameters and children would have its parameters placed one by one.
            if next(module.parameters(recurse=False), None) is not None and next(module.children(), None) is not None:
                whole.add(type(module).__name__)
            if module is not self and isinstance(module, PreTrainedModel):
                whole |= set(module._no_split_modules or ())
                skipped |= set(module._skip_keys_device_placement or ())
        return whole, skipped

    @property
    def base_model(self) -> Any:
        """The model without its head."""
        return Body(self)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token table."""
        return self.language_model.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts another token table into the language model."""
        self.language_model.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the language model's head, which `all-linear` of peft leaves out."""
        return self.language_model.model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Puts another head onto the language model."""
        self.language_model.model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers has it; the language model knows how its new rows begin and what is tied to them."""
        return self.language_model.model.resize_token_embeddings(*args, **kwargs)
