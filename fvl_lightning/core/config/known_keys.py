"""Refuses unknown keys of a configuration, and names the key that was probably meant.

A key may be spelt in another way, be known to another library by another name, stand in another section, or belong to
another component of the slot. Components are read from their source files, so that a mistake needs no import.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fvl_lightning.core import registry
from fvl_lightning.core.component_sources.components import component_sources
from fvl_lightning.core.config.base_files import COMMAND_LINE, OVERRIDES
from fvl_lightning.core.config.places import Location
from fvl_lightning.core.config.yaml_text import joined
from fvl_lightning.core.errors import ConfigError, nearest, unknown_name

OTHER_NAMES = {
    "accumulate_grad_batches": "accumulate", "bs": "batch_size", "epochs": "max_steps", "eval_steps": "validate_every",
    "global_batch_size": "global_batch", "gpus": "devices", "grad_accum": "accumulate", "grad_clip": "clip_norm",
    "gradient_accumulation_steps": "accumulate", "gradient_checkpointing": "checkpoint_activations",
    "gradient_clip_val": "clip_norm", "llm": "language_model", "logging_steps": "log_every", "lora_alpha": "alpha",
    "lora_dropout": "dropout", "lora_r": "rank", "lr": "learning_rate", "max_epochs": "max_steps",
    "max_grad_norm": "clip_norm", "max_length": "sequence_length", "max_seq_length": "sequence_length",
    "num_devices": "devices", "num_epochs": "max_steps", "num_gpus": "devices", "num_nodes": "nodes",
    "num_train_epochs": "max_steps", "num_workers": "workers", "output_dir": "output", "r": "rank",
    "per_device_train_batch_size": "batch_size", "save_steps": "checkpoint_every", "steps": "max_steps",
    "target_modules": "targets", "val_check_interval": "validate_every", "vision_tower": "encoder",
    "wd": "weight_decay",
}  # fmt: skip
"""Names that other libraries and people give to keys of this kit."""
OTHER_VALUES = {
    "gpu": "mps" if sys.platform == "darwin" else "cuda", "nvidia": "cuda", "metal": "mps", "bfloat16": "bf16-mixed",
    "fp16": "bf16-mixed", "float16": "bf16-mixed", "16": "bf16-mixed", "amp": "bf16-mixed", "fp32": "32-true",
    "float32": "32-true", "32": "32-true", "deepspeed": "fsdp", "zero": "fsdp", "zero3": "fsdp",
}  # fmt: skip
"""Names that other libraries give to values of this kit; a gpu is what this machine may have."""
CLOSE, ALIKE = 0.8, 0.5
"""How similar two spellings are: one is a slip of the other, or may be."""


def check_keys(expected: Any, value: Any, place: Location, values: Mapping[str, Any], key: str = "") -> None:
    """Raises ConfigError for a key that the dataclass `expected`, or one inside it, does not have.

    Args:
        expected: the dataclass, or the type of a field.
        value: the plain value for it.
        place: maps a dotted key to where it was written.
        values: the whole configuration, whose sections may have the key.
        key: the dotted path of `value`.
    """
    _check(expected, value, place, expected, values, key)


def _check(expected: Any, value: Any, place: Location, schema: Any, values: Mapping[str, Any], key: str) -> None:
    expected = _bare(expected)
    if dataclasses.is_dataclass(expected) and isinstance(value, Mapping):
        hints = get_type_hints(expected, include_extras=True)
        types = {field.name: hints[field.name] for field in dataclasses.fields(expected)}
        for name, inner in value.items():
            path = joined(key, name)
            if name not in types:
                if not key:
                    _refuse_other_kind(expected, value, place)
                meant = meant_key(str(name), types, schema, values)
                advice = getattr(expected, "advice_for_unknown", lambda name: "")(str(name))
                raise unknown_name("key", name, types, place(path), meant, advice)
            _check(types[name], inner, place, schema, values, path)
    elif get_origin(expected) is dict and isinstance(value, Mapping):
        for name, inner in value.items():
            _check(get_args(expected)[1], inner, place, schema, values, joined(key, name))
    elif get_origin(expected) is list and isinstance(value, list):
        for number, inner in enumerate(value):
            _check(get_args(expected)[0], inner, place, schema, values, joined(key, number))


def _refuse_other_kind(schema: Any, values: Mapping[str, Any], place: Location) -> None:
    """Raises ConfigError where a file is of another kind than `schema`, such as a comparison instead of an experiment.

    A key of another kind on the command line says nothing about the file.
    """
    found = getattr(schema, "file_of_another_kind", lambda keys: None)(map(str, values))
    if found is not None and not place(found[0]).endswith((COMMAND_LINE, OVERRIDES)):
        raise ConfigError(f"{place(found[0])}: {found[1]}")


def _bare(expected: Any) -> Any:
    """Returns a type without Annotated and None."""
    if get_origin(expected) is Annotated:
        return _bare(get_args(expected)[0])
    options = [option for option in get_args(expected) if option is not type(None)]
    optional = type(None) in get_args(expected) and len(options) == 1
    return _bare(options[0]) if optional else expected


def meant_key(
    name: str, here: Iterable[str], schema: Any, values: Mapping[str, Any], at_least: float = ALIKE
) -> str | None:
    """Returns the key that was probably meant: one of `here`, or the dotted key of another section; None for none.

    Args:
        name: the unknown key.
        here: the keys that its section has.
        schema: the dataclass of the whole configuration.
        values: its values, which name the component of each slot.
        at_least: how similar a spelling must be, from 0 to 1.
    """
    here, other = list(here), OTHER_NAMES.get(name.lower().replace("-", "_"))
    elsewhere = [path for path in _dotted_keys(schema, values) if path not in here] if schema else []
    of_others = list(_keys_of_components(schema)) if schema else []
    for wanted in filter(None, (other, name)):
        if wanted in here:
            return wanted
        for paths in (elsewhere, of_others):
            if found := [path for path in paths if path.rpartition(".")[2] == wanted]:
                return min(found, key=len)
    if close := nearest(name, here, CLOSE):
        return close
    by_last = {path.rpartition(".")[2]: path for path in reversed(elsewhere)}
    starts = [path for last, path in by_last.items() if last.startswith(f"{name}_")]
    if len(starts) == 1:
        return starts[0]
    close = nearest(name, by_last, CLOSE)
    return by_last[close] if close else nearest(name, here, at_least)


def _dotted_keys(schema: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a schema, with those of the components that fill its slots."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        entry, inner = values.get(field.name), _bare(hints[field.name])
        if "slot" in field.metadata:
            chosen = entry.get("name") if isinstance(entry, Mapping) else entry
            inner = _source_configs(field.metadata["slot"]).get(str(chosen))
        yield prefix + field.name
        if dataclasses.is_dataclass(inner):
            yield from _dotted_keys(inner, entry if isinstance(entry, Mapping) else {}, f"{prefix}{field.name}.")


def _keys_of_components(schema: Any) -> Iterator[str]:
    """Yields slot.key for the keys of all components that could fill the slots of a schema."""
    for field in dataclasses.fields(schema):
        for config in _source_configs(field.metadata["slot"]).values() if "slot" in field.metadata else ():
            yield from (f"{field.name}.{key}" for key in _names(config))


def check_component_keys(
    slot: str, name: str, config: Any, fields: Mapping[str, Any], place: Location, schema: Any = None
) -> None:
    """Raises ConfigError for a key that the chosen component does not have; it names the components that have it."""
    known = [field.name for field in dataclasses.fields(config)]
    for key in fields:
        if key not in known:
            owners = [other for other, its in _source_configs(slot).items() if key in _names(its) and other != name]
            meant = meant_key(str(key), known, schema, {})
            advice = f"{name} has no such key, {_have_it(owners)}" if owners else ""
            raise unknown_name("key", key, known, place(key), meant, advice)


def _have_it(owners: Sequence[str]) -> str:
    return f"{' and '.join(owners)} {'has' if len(owners) == 1 else 'have'} it"


def _source_configs(slot: str) -> dict[str, Any]:
    """Returns {name: Config} of the components of a slot, those read that have been imported or can be read."""
    configs = {name: component.Config for name, component in registry.registered(slot).items()}
    try:
        sources = component_sources(slot)
    except Exception:  # whatever the text lacks, the hint lacks
        return configs
    for name, source in sources.items():
        try:
            configs.setdefault(name, source.config)
        except Exception:
            continue
    return configs


def _names(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
