"""Causal language models of transformers: Phi-3.5, Llama 3, Vicuna, Qwen, Gemma, Granite, Cohere, ..."""

import dataclasses
import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from fvl_lightning.core.chat_date import CHAT_DATE, dated_tokenizer, has_a_day
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.errors import ConfigError, DataError, first_line, nearest, refuse_unknown_fields
from fvl_lightning.core.pretrained import check_number_types, loading_problem, open_saved, quiet_loading
from fvl_lightning.core.registry import register
from fvl_lightning.core.weight_files import check_finite, read_json
from fvl_lightning.language_models.base import LanguageModel
from fvl_lightning.language_models.rescaling import embedding_multiplier, rescale_logits

LOGIT_TOLERANCE = 1e-3
"""The largest relative difference (Euclidean) of logits that counts as rounding."""


@register("language_model", "causal")
class CausalLanguageModel(LanguageModel):
    """A causal language model of transformers: `pretrained` loads one, `model` builds one from scratch."""

    @dataclass
    class Config:
        """Fields of the language model."""

        pretrained: PathText | None = None
        """Hub id or folder, such as microsoft/Phi-3.5-mini-instruct."""
        revision: str | None = None
        """Hub revision; null for the newest."""
        model: dict[str, Any] = field(default_factory=dict)
        """The model's configuration, with `model_type`; read from `pretrained` if that is given. Setting
        `pretrained` over an inherited `model` replaces `model` and the tokenizer."""
        tokenizer: PathText | None = None
        """Hub id or folder of the tokenizer; null for `pretrained`'s."""
        chat_template: str | None = None
        """Jinja text of the chat template, for a tokenizer that has none (Vicuna's); null for the tokenizer's own."""
        chat_date: str = field(
            default=CHAT_DATE, metadata={"before": lambda config: not has_a_day(load_tokenizer(config))}
        )
        """The day (YYYY-MM-DD) for chat templates that write today's date (Llama 3.2's does). It belongs to the run, so
        that prompts and a resumed run have the tokens of training on any day. Runs older than this field used the
        current date."""

        def __post_init__(self) -> None:
            try:
                datetime.date.fromisoformat(self.chat_date)
            except ValueError:
                raise ValueError(f"chat_date: a day such as {CHAT_DATE} is expected, found {self.chat_date}") from None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model_config = build_config(config)
        try:
            self.model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
        except Exception as error:  # each model class raises errors of its own
            reason = first_line(error)
            raise ConfigError(f"language_model.model: no causal model can be built of it: {reason}") from None
        # Some models have layers wider than their embeddings.
        self.dim = self.model.get_input_embeddings().weight.shape[1]
        self.image_divisor = embedding_multiplier(self.model.config)

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Reads the configuration from the hub or a folder; a model from scratch gets the tokenizer's vocabulary.

        Raises:
            ConfigError: neither is given, the configuration cannot be read, or the model is not supported.
        """
        if config.pretrained is None and not config.model:
            raise ConfigError("language_model: give `pretrained` (hub id or folder) or `model` (sizes, from scratch)")
        try:
            if config.pretrained is not None:
                model = config.model
                if not model:
                    model = read_model(config.pretrained, config.revision)
                elif "model_type" not in model:
                    raise ConfigError(
                        "language_model.model: `pretrained` has sizes of its own; leave `model` out, or write "
                        "pretrained=null for a model from scratch"
                    )
            else:
                model = config.model
                _check_model(model)
                if "vocab_size" not in model:
                    model = {**model, **_vocabulary_fields(load_tokenizer(config))}
        except (OSError, ValueError) as error:
            raise ConfigError(f"language_model: {config.pretrained} could not be read: {first_line(error)}") from None
        resolved = dataclasses.replace(config, model=model)
        _check_supported(build_config(resolved))
        return resolved

    @property
    def fills_all_weights(self) -> bool:
        """Returns whether there is a checkpoint, which `load_pretrained` takes only if it is complete."""
        return self.config.pretrained is not None

    def load_pretrained(self) -> None:
        """Loads the weights of a hub id or folder, from safetensors files only.

        Raises:
            ConfigError: they cannot be read, or are not exactly those of the configuration.
            DataError: a weight holds NaN or inf.
        """
        source = self.config.pretrained
        if source is None:
            return
        with quiet_loading():
            pretrained, report = open_saved(
                type(self.model),
                source,
                "language_model",
                config=build_config(self.config),
                revision=self.config.revision,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.get_default_dtype(),
            )
        if problem := loading_problem(report):
            raise ConfigError(f"language_model: {source} {problem}")
        if untied := sorted(self.model.all_tied_weights_keys.keys() - pretrained.all_tied_weights_keys.keys()):
            raise ConfigError(
                f"language_model: the configuration of {source} ties {untied[0]} to the token table, but its files "
                "hold other values for it; set tie_word_embeddings to false there, or leave the values out"
            )
        values = pretrained.state_dict()
        check_number_types(source, self.config.revision, values, "language_model")
        check_finite(dict(pretrained.named_parameters()), f"language_model: {source}")
        self.model.load_state_dict(values, assign=True)  # a copy would need the memory twice
        self.model.tie_weights()

    @torch.no_grad()
    def check(self) -> None:
        """Compares the model's logits for three tokens with those of `embed`, `forward` and `logits`.

        This finds models that change logits or embeddings in ways that no field in `rescaling.py` names.

        Raises:
            ConfigError: the logits differ by more than rounding.
        """
        training = self.model.training
        self.model.eval()
        ids = torch.arange(1, 4, device=self.model.device).unsqueeze(0)
        wanted = self.model(input_ids=ids, use_cache=False).logits
        found = self.logits(self(self.embed(ids), use_cache=False).last_hidden_state)
        self.model.train(training)
        if not (wanted - found).norm() <= LOGIT_TOLERANCE * wanted.norm():
            raise ConfigError(
                f"language_model: {self.model.config.model_type} computes more between embeddings and logits than its "
                "layers, its head and the scales that its configuration names, and is not supported; take a model such "
                "as llama, phi3 or qwen2"
            )

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """{target: source} of tied weights; the root model reads it from its children."""
        return {f"model.{target}": f"model.{source}" for target, source in self.model.all_tied_weights_keys.items()}

    def blocks(self) -> list[nn.Module]:
        """Returns the decoder layers: the outermost list with as many modules as the configuration has layers.

        Raises:
            ConfigError: there is no such list.
        """
        count = self.model.config.num_hidden_layers
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        outermost = next((modules for modules in lists if len(modules) == count), None)
        if outermost is None:
            raise ConfigError(
                f"language_model.model: no list of {count} layers was found in {type(self.model).__name__}, so that it "
                "can be neither sharded nor have its activations checkpointed; leave both out of `trainer`"
            )
        return list(outermost)

    def token_table(self) -> nn.Module | None:
        """Returns the token embeddings, unless the head is tied to them."""
        table = self.model.get_input_embeddings()
        owned = set(table.parameters())
        others = [module for module in self.model.modules() if module not in set(table.modules())]
        return table if owned.isdisjoint(one for module in others for one in module.parameters(recurse=False)) else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Returns embeddings [B, S, D] of token ids [B, S]."""
        return self.model.get_input_embeddings()(token_ids)

    def forward(self, embeddings: Tensor, **inputs: Any) -> Any:
        """Returns an output with `last_hidden_state` [B, S, D]; `inputs` are arguments of transformers' models."""
        return self.model.base_model(inputs_embeds=embeddings, **inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]."""
        return rescale_logits(self.model.get_output_embeddings()(hidden), self.model.config)


def build_config(config: CausalLanguageModel.Config) -> PreTrainedConfig:
    """Returns transformers' configuration of a resolved Config; raises ConfigError for an unknown model type."""
    fields = dict(config.model)
    model_type = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # each configuration class raises errors of its own
        reason = " ".join(str(error).split())
        raise ConfigError(f"language_model.model: model_type '{model_type}' cannot be built: {reason}") from None


def read_model(pretrained: str, revision: str | None) -> dict[str, Any]:
    """Returns the configuration of a hub id or folder; eos_token_id includes the ids of its generation config.

    Raises:
        OSError, ValueError: it cannot be read.
        ConfigError: its weights are quantised.
    """
    model = open_saved(AutoConfig, pretrained, "language_model", revision=revision).to_dict()
    # The dtype of the files. Training uses float32, since bfloat16 would round away steps of 1e-5.
    model.pop("dtype", None)
    if quantization := model.get("quantization_config"):
        method = quantization.get("quant_method", "an unknown method")
        raise ConfigError(
            f"language_model.pretrained: the weights of {pretrained} are quantised ({method}); name the model that "
            "they were made of (lora.quantization holds it in 4 bits)"
        )
    file = cached_file(
        pretrained, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    listed = read_json(Path(file)).get("eos_token_id") if file else None
    ids = list(dict.fromkeys([*as_ids(model.get("eos_token_id")), *as_ids(listed)]))
    if ids:
        model["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    return model


def as_ids(value: int | list[int] | None) -> list[int]:
    """Returns the ids of an eos_token_id, which is one, several or None, as a list; DataError for anything else."""
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise DataError(f"eos_token_id is {value!r}, expected a token id or a list of them")
    return list(ids)


def _check_supported(config: PreTrainedConfig) -> None:
    """Raises ConfigError for a model with more than a language model."""
    if "text_config" in config.sub_configs:
        raise ConfigError(
            f"language_model: {config.model_type} is a model of several parts, take a causal language model alone, "
            "such as llama, phi3 or qwen2"
        )


def _check_model(model: dict[str, Any]) -> None:
    model_type = model.get("model_type")
    if model_type not in CONFIG_MAPPING:
        where = "language_model.model.model_type"
        close = nearest(str(model_type), CONFIG_MAPPING)
        hint = f"; did you mean '{close}'?" if close else ""
        raise ConfigError(f"{where}: '{model_type}' is no model of transformers, such as llama, phi3 or qwen2{hint}")
    refuse_unknown_fields(model, CONFIG_MAPPING[model_type], "language_model.model")


def load_tokenizer(config: CausalLanguageModel.Config) -> Any:
    """Returns the tokenizer with its chat template; raises ConfigError if it cannot be read."""
    source = config.tokenizer or config.pretrained
    if source is None:
        raise ConfigError("language_model.tokenizer: name the tokenizer's hub id or folder")
    revision = config.revision if config.tokenizer is None else None
    tokenizer = open_saved(AutoTokenizer, source, "language_model.tokenizer", revision=revision)
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    return dated_tokenizer(tokenizer, config.chat_date)


def _vocabulary_fields(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
