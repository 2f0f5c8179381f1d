"""Adapters in a model: they are inserted, checked for completeness, and merged into the weights."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peft import PeftConfig
from peft.functional import cast_adapter_dtype, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.modeling.adapters.patterns import check_patterns

PREFIX = "base_model.model."
"""The prefix of all names in peft's files."""
SUBJECT = "the adapter"
"""The beginning of messages of the load_state_dict hook, which does not know the adapter's folder."""
REMEDY = "its file was cut or put together by hand, copy the folder again"


def insert_adapter(
    model: PreTrainedModel, config: PeftConfig, state: Mapping[str, Tensor], name: str, where: str
) -> None:
    """Inserts an adapter into a model.

    Args:
        model: the base.
        config: the adapter's configuration.
        state: {name in peft's file: tensor}.
        name: the name of the adapter in the model.
        where: the adapter, as errors name it.

    Raises:
        DataError: the adapter does not fit the model, or a tensor is missing or has no place in it.
    """
    check_patterns(_patterns(config), [module for module, _ in model.named_modules()], where)
    _check_ranks(config, state, where)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are intended
            inject_adapter_in_model(config, model, name)
        cast_adapter_dtype(model, name)  # as peft does, so that a base in half precision does not round its adapters
        plain = {key.removeprefix(PREFIX): value for key, value in state.items()}
        result = set_peft_model_state_dict(model, plain, adapter_name=name)
    except DataError as error:
        raise DataError(f"{where}{str(error).removeprefix(SUBJECT)}") from None
    except KeyError as error:  # raised for a module trained in full
        raise DataError(f"{where} lacks {first_line(error)}; {REMEDY}") from None
    except Exception as error:  # each kind of adapter raises errors of its own
        raise DataError(f"{where} does not fit its base: {first_line(error)}") from None
    if result.unexpected_keys:
        raise DataError(f"{where} has tensors without a place in its base, such as {result.unexpected_keys[0]}")
    if lacking := _missing_tensors(model, result.missing_keys).get(name):
        raise DataError(f"{where} lacks {len(lacking)} of its tensors, such as {lacking[0]}; {REMEDY}")
    model._hf_peft_config_loaded = True  # makes save_pretrained write an adapter rather than a whole model


def _patterns(config: PeftConfig) -> Iterator[object]:
    """Yields what peft matches with the names of all modules."""
    for field in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(config, field, None)
        yield from [value] if isinstance(value, str) else value or ()
    for field in ("rank_pattern", "alpha_pattern"):
        yield from getattr(config, field, None) or ()


def _check_ranks(config: PeftConfig, state: Mapping[str, Tensor], where: str) -> None:
    """Raises DataError for a rank that no tensor of the adapter has, before its matrices are made."""
    largest = max((side for value in state.values() for side in value.shape), default=0)
    patterns = getattr(config, "rank_pattern", None) or {}
    if not isinstance(patterns, Mapping):
        raise DataError(f"{where}: rank_pattern is {patterns!r}, expected a mapping")
    for rank in (getattr(config, "r", 1), *patterns.values()):
        if not isinstance(rank, int) or not 0 < rank <= max(largest, 1):
            raise DataError(f"{where} does not fit its configuration: rank {rank!r}, with tensors of {largest} at most")


def refuse_partial_adapters(model: nn.Module, incompatible: Any) -> None:
    """Refuses adapters that were loaded in part; a load_state_dict hook, so that it also runs when peft loads.

    Raises:
        DataError: a tensor of an adapter has no place in the model, or an adapter lacks some of its tensors.
    """
    layer_names = _adapter_layer_names(model)
    astray = [key for key in incompatible.unexpected_keys if layer_names & set(key.split("."))]
    if astray:
        raise DataError(f"{SUBJECT} has {len(astray)} tensors without a place in its base, such as {astray[0]}")
    wanted = adapter_keys(model, dict(model.named_parameters(remove_duplicate=False)))
    for name, keys in _missing_tensors(model, incompatible.missing_keys).items():
        if len(keys) < len(wanted[name]):
            raise DataError(f"{SUBJECT} lacks {len(keys)} of its tensors, such as {keys[0]}; {REMEDY}")


def adapter_keys(model: nn.Module, keys: Iterable[str]) -> dict[str, list[str]]:
    """Returns {adapter: the `keys` of the model that are its tensors}."""
    layer_names = _adapter_layer_names(model)
    found: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        at = next((index for index, part in enumerate(parts[:-1]) if part in layer_names), None)
        if at is not None:
            found.setdefault(parts[at + 1], []).append(key)
    return found


def merge_into_base(model: PreTrainedModel, where: str) -> PreTrainedModel:
    """Merges the active adapter into the weights of `model`, and removes all layers of peft.

    Args:
        model: the base with its adapter, changed in place.
        where: the adapter, as errors name it.

    Raises:
        DataError: an adapted layer shares its weights with another module, which the merge would change too.
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
                "adapter would change too; use the adapter without merging it"
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
    model.config.tie_word_embeddings = _has_tied_head(model)
    return model


def _missing_tensors(model: nn.Module, missing: Iterable[str]) -> dict[str, list[str]]:
    """Returns {adapter: its tensors that a file lacks}; a tensor tied to one in the file does not count."""
    absent = {key.removeprefix(PREFIX) for key in missing}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {id(parameter) for key, parameter in parameters.items() if key not in absent}
    return adapter_keys(model, [key for key in parameters if key in absent and id(parameters[key]) not in held])


def _has_tied_head(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _adapter_layer_names(model: nn.Module) -> set[str]:
    """Returns the names of the submodules that peft adds to layers, such as lora_A."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {name for layer in layers for name in layer.adapter_layer_names}
