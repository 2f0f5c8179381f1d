"""Any causal language model of transformers: Phi-3.5, Llama 3, Vicuna, Qwen, ..."""

import dataclasses
import datetime
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fvl_lightning.core.chat_date import CHAT_DATE, dated_tokenizer
from fvl_lightning.core.errors import ConfigError, nearest, refuse_unknown_fields
from fvl_lightning.core.registry import register
from fvl_lightning.language_models.base import LanguageModel

RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration fields with which a model changes its logits after the head; the head alone would be wrong for it."""


@register("language_model", "causal")
class CausalLanguageModel(LanguageModel):
    """A transformers causal model, from the hub or a folder with `pretrained`, from scratch with `model`."""

    @dataclass
    class Config:
        """Fields of the language model."""

        pretrained: str | None = None
        """Hub id or folder, such as microsoft/Phi-3.5-mini-instruct."""
        revision: str | None = None
        """Hub revision; null for the newest."""
        model: dict[str, Any] = field(default_factory=dict)
        """The model's configuration, with `model_type`; read from `pretrained` where that is given."""
        tokenizer: str | None = None
        """Hub id or folder of the tokenizer; null for `pretrained`'s."""
        chat_template: str | None = None
        """Jinja text of the chat template, for a tokenizer that has none (Vicuna's); null for the tokenizer's own."""
        chat_date: str = CHAT_DATE
        """The day (YYYY-MM-DD) that a chat template writes which asks for today's (Llama 3.2's does). It is a part of
        the run, so that the model is asked, and a stopped run goes on, with the tokens of training on any day."""

        def __post_init__(self) -> None:
            try:
                datetime.date.fromisoformat(self.chat_date)
            except ValueError:
                raise ValueError(f"chat_date: a day such as {CHAT_DATE} is expected, found {self.chat_date}") from None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model_config = build_config(config)
        model_config._attn_implementation = "sdpa"
        try:
            self.model = AutoModelForCausalLM.from_config(model_config)
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"language_model.model: no causal model can be built of it: {first}") from None
        self.dim = model_config.hidden_size

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Reads the configuration from hub or folder; a model from scratch takes its vocabulary from the tokenizer."""
        if config.pretrained is None and not config.model:
            raise ConfigError("language_model: give `pretrained` (hub id or folder) or `model` (sizes, from scratch)")
        try:
            if config.pretrained is not None:
                model = config.model
                if not model:
                    model = AutoConfig.from_pretrained(config.pretrained, revision=config.revision).to_dict()
                    # That of the files. What trains is float32: steps of 1e-5 are lost in rounding to bfloat16.
                    del model["dtype"]
            else:
                model = config.model
                _check_model(model)
                if "vocab_size" not in model:
                    model = {**model, **_vocabulary(load_tokenizer(config))}
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"language_model: {config.pretrained} could not be read: {first}") from None
        rescaled = [name for name in RESCALED_LOGITS if model.get(name) not in (None, 1, 1.0)]
        if rescaled:
            raise ConfigError(f"language_model: models with {rescaled[0]} rescale their logits and are not supported")
        resolved = dataclasses.replace(config, model=model)
        build_config(resolved)
        return resolved

    def load_pretrained(self) -> None:
        """Copies the weights of a hub id or folder; safetensors only."""
        if self.config.pretrained is None:
            return
        try:
            theirs = AutoModelForCausalLM.from_pretrained(
                self.config.pretrained, revision=self.config.revision, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"language_model: {self.config.pretrained} could not be read: {first}") from None
        self.model.load_state_dict(theirs.state_dict())

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """{target: source} of tied weights, where the root model's own look-up among its children finds it."""
        return {f"model.{target}": f"model.{source}" for target, source in self.model.all_tied_weights_keys.items()}

    def blocks(self) -> list[nn.Module]:
        """The decoder layers: the one list of as many modules as the configuration counts layers."""
        count = self.model.config.num_hidden_layers
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        outermost = next((modules for modules in lists if len(modules) == count), None)
        if outermost is None:
            raise ConfigError(
                f"language_model.model: no list of {count} layers was found in {type(self.model).__name__}, so that it "
                "can be neither sharded nor have its activations checkpointed; leave both out of `trainer`"
            )
        return list(outermost)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, D]."""
        return self.model.get_input_embeddings()(token_ids)

    def forward(self, embeddings: Tensor, **inputs: Any) -> Any:
        """[B, S, D] -> output with `last_hidden_state` [B, S, D]; `inputs` as transformers' models take them."""
        return self.model.base_model(inputs_embeds=embeddings, **inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.model.get_output_embeddings()(hidden)


def build_config(config: CausalLanguageModel.Config) -> PreTrainedConfig:
    """transformers' configuration of a resolved Config; ConfigError for a model type it does not know."""
    fields = dict(config.model)
    model_type = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # each configuration class refuses values in its own way
        reason = " ".join(str(error).split())
        raise ConfigError(f"language_model.model: model_type '{model_type}' cannot be built: {reason}") from None


def _check_model(model: dict[str, Any]) -> None:
    model_type = model.get("model_type")
    if model_type not in CONFIG_MAPPING:
        where = "language_model.model.model_type"
        close = nearest(str(model_type), CONFIG_MAPPING)
        hint = f"; did you mean '{close}'?" if close else ""
        raise ConfigError(f"{where}: '{model_type}' is no model of transformers, such as llama, phi3 or qwen2{hint}")
    refuse_unknown_fields(model, CONFIG_MAPPING[model_type], "language_model.model")


def load_tokenizer(config: CausalLanguageModel.Config) -> Any:
    """The transformers tokenizer of the language model, with its chat template; ConfigError where it cannot be read."""
    source = config.tokenizer or config.pretrained
    if source is None:
        raise ConfigError("language_model.tokenizer: name the tokenizer's hub id or folder")
    revision = config.revision if config.tokenizer is None else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"language_model.tokenizer: {source} could not be read: {first}") from None
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    return dated_tokenizer(tokenizer, config.chat_date)


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
