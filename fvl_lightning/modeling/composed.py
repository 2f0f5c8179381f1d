"""The methods that transformers expects of a model, for a model composed of components."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fvl_lightning.modeling.pretrained import FlorenceVLPreTrainedModel


class Body:
    """A model without its head, which tools of transformers get as `base_model`; a call returns hidden states."""

    def __init__(self, model: "ComposedModel") -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.run(*args, **kwargs)[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class ComposedModel(FlorenceVLPreTrainedModel):
    """Token embeddings, head, attention and device placement of a model with an `encoder` and a `language_model`.

    Its method `run` is the model up to the head: it returns the language model's output and diagnostics.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def compose(self) -> None:
        """Sets what concerns all components; call it when they are built, before `post_init`."""
        self._share_text_config()
        self._no_split_modules, self._skip_keys_device_placement = self._placement()

    def _share_text_config(self) -> None:
        """Makes the language model's configuration and `text_config` one object, and sets the attention implementation.

        Resizing, masks for a static cache and `set_attn_implementation` change one of them and read the other.
        """
        asked = self.config.get_text_config()._attn_implementation
        self.config.text_config = self.language_model.model.config
        own = self.config._attn_implementation
        if (own, asked or own) != ("sdpa", "sdpa"):  # the implementation with which components are built
            self.set_attn_implementation({"": own, "text_config": asked or own})

    def _placement(self) -> tuple[set[str], set[str]]:
        """Returns, for placement on several devices, the classes to keep whole and the inputs not to move.

        transformers reads them from direct children, which are not models of transformers here.
        """
        whole = {type(block).__name__ for block in self.encoder.blocks()}
        skipped: set[str] = set()
        for module in self.modules():
            # accelerate would place the parameters of a module with children one by one.
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
        """Returns the token embeddings of the language model."""
        return self.language_model.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings of the language model."""
        self.language_model.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the head of the language model, which peft's `all-linear` leaves out."""
        return self.language_model.model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the head of the language model."""
        self.language_model.model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the token embeddings of the language model, which initialises new rows and keeps weights tied."""
        return self.language_model.model.resize_token_embeddings(*args, **kwargs)
