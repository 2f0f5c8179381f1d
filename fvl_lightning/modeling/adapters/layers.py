"""Adapters inside a model: put in, checked for completeness whoever loads them, and folded into the weights."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig
from peft.functional import cast_adapter_dtype, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from fvl_lightning.core.errors import DataError, first_line

PREFIX = "base_model.model."
"""What stands before the names in peft's files."""
SUBJECT = "the adapter"
"""How sentences of the hook begin, which does not know the adapter's folder."""
REMEDY = "its file was cut or put together by hand, copy the folder again"


def put_in(model: PreTrainedModel, config: PeftConfig, state: Mapping[str, Tensor], name: str, where: str) -> None:
    """Puts an adapter under the name `name` into a model, with the values `state` {name in peft's file: tensor}.

    Raises:
        DataError: the adapter does not fit the model, a tensor has no place, or one is missing; names `where`.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are what is wanted
            inject_adapter_in_model(config, model, name)
        cast_adapter_dtype(model, name)  # as peft does: a base in half precision does not round its adapters
        plain = {key.removeprefix(PREFIX): value for key, value in state.items()}
        result = set_peft_model_state_dict(model, plain, adapter_name=name)
    except DataError as error:
        raise DataError(f"{where}{str(error).removeprefix(SUBJECT)}") from None
    except KeyError as error:  # a module trained in full
        raise DataError(f"{where} lacks {first_line(error)}; {REMEDY}") from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where} does not fit its base: {first_line(error)}") from None
    if result.unexpected_keys:
        raise DataError(f"{where} has tensors without a place in its base, such as {result.unexpected_keys[0]}")
    if lacking := _lost(model, result.missing_keys).get(name):
        raise DataError(f"{where} lacks {len(lacking)} of its tensors, such as {lacking[0]}; {REMEDY}")
    model._hf_peft_config_loaded = True  # by which save_pretrained writes an adapter and not a base with layers


def refuse_partial_adapters(model: nn.Module, incompatible: Any) -> None:
    """Refuses, after any load_state_dict, adapters that were loaded in part; a hook, so that it holds for peft's too.

    Raises:
        DataError: a tensor of an adapter without a place, or an adapter of which only some tensors came.
    """
    kinds = _kinds(model)
    astray = [key for key in incompatible.unexpected_keys if kinds & set(key.split("."))]
    if astray:
        raise DataError(f"{SUBJECT} has {len(astray)} tensors without a place in its base, such as {astray[0]}")
    wanted = adapter_keys(model, dict(model.named_parameters(remove_duplicate=False)))
    for name, keys in _lost(model, incompatible.missing_keys).items():
        if len(keys) < len(wanted[name]):
            raise DataError(f"{SUBJECT} lacks {len(keys)} of its tensors, such as {keys[0]}; {REMEDY}")


def adapter_keys(model: nn.Module, keys: Iterable[str]) -> dict[str, list[str]]:
    """Returns {adapter: those of `keys`, names in the model, that are tensors of it}."""
    kinds = _kinds(model)
    found: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        at = next((index for index, part in enumerate(parts[:-1]) if part in kinds), None)
        if at is not None:
            found.setdefault(parts[at + 1], []).append(key)
    return found


def fold(model: PreTrainedModel, where: str) -> PreTrainedModel:
    """Folds the adapter in use into the weights of `model` and removes every layer of peft.

    Raises:
        DataError: an adapter beside weights that are those of another part too, which it would change; names `where`.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        shared = owners[id(layer.get_base_layer().weight)]
        if len(shared) > 1:
            raise DataError(
                f"{where} cannot be merged: {name} shares its weights with another part of the model, which the "
                "adapter would change too; use the adapter beside its base"
            )
    inside = tuple(f"{name}." for name in layers)
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)}
    for name, layer in layers.items():
        if name.startswith(inside):
            continue
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    for name, wrapper in wrappers.items():
        whole = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        model.set_submodule(name, whole)
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.config.tie_word_embeddings = _tied(model)
    return model


def _lost(model: nn.Module, missing: Iterable[str]) -> dict[str, list[str]]:
    """{adapter: its tensors that a file did not hold}; one that is tied to another comes under one name."""
    absent = {key.removeprefix(PREFIX) for key in missing}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {id(parameter) for key, parameter in parameters.items() if key not in absent}
    return adapter_keys(model, [key for key in parameters if key in absent and id(parameters[key]) not in held])


def _tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _kinds(model: nn.Module) -> set[str]:
    """The names under which peft's layers hold what they add, such as lora_A."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {name for layer in layers for name in layer.adapter_layer_names}
