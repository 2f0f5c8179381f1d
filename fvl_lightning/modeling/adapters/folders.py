"""Adapter folders in peft's format: LoRA's tensors and the modules trained in full, without their base.

adapter_config.json         peft's configuration, with the folder of the base and the stop tokens
adapter_model.safetensors   the tensors; its header has the hash of the base's weights
config.json                 the configuration of the whole model, next to the processor's files
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from peft import PeftConfig
from peft.functional import get_peft_model_state_dict, set_adapter
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.core.pretrained import open_saved
from fvl_lightning.core.weight_files import check_finite, read_json, weights_hash
from fvl_lightning.language_models.causal import as_ids
from fvl_lightning.modeling.adapters.layers import PREFIX, insert_adapter, merge_into_base

logger = logging.getLogger(__name__)

ADAPTER = "default"
"""peft's name for a single adapter."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WRAPPERS = ("base_layer", "original_module", "token_adapter")
"""Parts that peft inserts into the names of the base's tensors."""
ADAPTER_PREFIXES = tuple(PEFT_TYPE_TO_PREFIX_MAPPING.values())
"""Prefixes of the parts of names that peft adds, such as lora_."""
AUTO_MAPPING = {"base_model_class": "AutoModelForImageTextToText", "parent_library": "transformers"}
"""Lets AutoPeftModel find the class of the base; peft does not import classes from this library."""
STOP_TOKENS = "stop_tokens"
"""The key of `auto_mapping` for the stop tokens: peft reads no other file that could hold them."""
CONTAINERS = nn.ModuleDict | nn.ModuleList
"""Modules without a forward, which peft cannot train in full."""


def is_adapter_folder(folder: Path) -> bool:
    """Returns whether `folder` holds an adapter rather than a whole model."""
    return (folder / CONFIG).is_file()


def save_adapter(model: PreTrainedModel, folder: Path, base: Path, base_hash: str, full: Collection[str]) -> None:
    """Writes the adapter of `model`, and the children that were trained in full.

    Args:
        model: the base with its adapter.
        folder: the folder to write.
        base: the folder of the base.
        base_hash: the weights_hash of the base without `full`.
        full: the direct children that were trained in full; those that the model does not have are ignored.
    """
    full = [child for child in full if child in dict(model.named_children())]
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = str(base.resolve())
    config.modules_to_save = modules_to_save(model, full) or None
    config.inference_mode = True
    config.auto_mapping = AUTO_MAPPING | {STOP_TOKENS: as_ids(model.generation_config.eos_token_id)}
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    adapter_tensors = sum(".lora_" in name for name, _ in model.named_parameters())
    if len(state) != adapter_tensors:
        raise DataError(f"{folder}: only {len(state)} of the {adapter_tensors} adapter tensors would be saved")
    saved = _modules_ending_with(model, config.modules_to_save or ())
    state |= {name: value for name, value in model.state_dict().items() if _is_inside(name, saved)}
    tensors = {PREFIX + name: value.contiguous().clone() for name, value in state.items()}
    header = {"format": "pt", "base_hash": base_hash, "full": ",".join(sorted(full))}
    save_file(tensors, folder / WEIGHTS, metadata=header)
    config.save_pretrained(folder)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def modules_to_save(model: nn.Module, children: Collection[str]) -> list[str]:
    """Returns names by which peft selects the children, and no other modules if possible.

    peft selects every module whose name ENDS with a given one: `projector` would select `encoder.image_projector` too,
    so that the submodules of the projector are named instead.
    """
    names: list[str] = []
    for child in children:
        module = model.get_submodule(child)
        if not module.state_dict():
            continue
        own = any(True for _ in module.parameters(recurse=False))
        if (isinstance(module, CONTAINERS) or _modules_ending_with(model, [child]) != {child}) and not own:
            names += modules_to_save(model, [f"{child}.{name}" for name, _ in module.named_children()])
        else:
            names.append(child)
    return names


def namesakes(model: nn.Module, config: PeftConfig) -> dict[str, list[str]]:
    """Returns {module in `modules_to_save`: other modules with the same ending, which peft trains too}."""
    named = () if config.inference_mode else getattr(config, "modules_to_save", None) or ()
    split = [key.split(".") for key, _ in model.named_modules()]
    plain = [parts for parts in split if "modules_to_save" not in parts]
    keys = {".".join(part for part in parts if part not in WRAPPERS) for parts in plain}
    outside = {name: _outermost_namesakes(keys, name) for name in named if name in keys}
    return {name: others for name, others in outside.items() if others}


def base_of(folder: Path, given: Path | None = None) -> Path:
    """Returns the folder of an adapter's base: `given`, or the one that the adapter names, or `base` in or next to it.

    Raises:
        DataError: none of them exists, or the base is an adapter itself.
    """
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    places = [given] if given else [Path(str(named)), folder / "base", folder.parent / "base"]
    base = next((place for place in places if (place / "config.json").is_file()), None)
    if base is None:
        raise DataError(
            f"the base of the adapter {folder} is not in {places[0]}; give its folder as the model, and the adapter "
            "with --adapter (`fvl export` takes it with --base)"
        )
    if is_adapter_folder(base):
        raise DataError(f"{base}, the base of the adapter {folder}, is an adapter itself; name a whole model")
    return base


def attach_adapter(model: PreTrainedModel, folder: Path, name: str = ADAPTER) -> None:
    """Inserts the adapter of a folder into a model, which may have other adapters, and activates it.

    Raises:
        DataError: files cannot be read, or the model is not the adapter's base.
    """
    state = check_adapter(model, folder)
    insert_adapter(model, read_config(folder), state, _peft_name(name), f"the adapter {folder}")
    use_adapter(model, name)
    model.eval()


def check_adapter(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Returns {name in peft's file: tensor} of an adapter, after a check of its base.

    Raises:
        DataError: a file cannot be read or holds NaN, or `model` is not the base of the adapter.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{folder / WEIGHTS} is not a readable safetensors file: {first_line(error)}; copy the folder again, or "
            "write it again with `fvl export`"
        ) from None
    check_finite(state, f"the adapter {folder}")
    if "base_hash" in header:
        _check_base(model, folder, header)
    return state


def read_config(folder: Path) -> PeftConfig:
    """Returns the configuration of an adapter, with the stop tokens of its folder.

    Raises:
        DataError: peft cannot read it.
    """
    read_json(folder / CONFIG)
    config = open_saved(PeftConfig, str(folder), "the configuration of the adapter", DataError)
    if not isinstance(config.auto_mapping, dict | None):
        raise DataError(f"{folder / CONFIG}: auto_mapping is {config.auto_mapping!r}, expected a mapping")
    path = folder / GENERATION_CONFIG_NAME
    listed = as_ids(read_json(path).get("eos_token_id")) if path.is_file() else []
    stop_tokens = list(dict.fromkeys([*adapter_stop_tokens(config), *listed]))
    config.auto_mapping = (config.auto_mapping or AUTO_MAPPING) | {STOP_TOKENS: stop_tokens}
    return config


def adapter_stop_tokens(config: PeftConfig) -> list[int]:
    """Returns the stop tokens of an adapter; an empty list if its configuration has none."""
    return as_ids((config.auto_mapping or {}).get(STOP_TOKENS))


def _check_base(model: PreTrainedModel, folder: Path, header: Mapping[str, str]) -> None:
    state = model.state_dict()
    if getattr(model, "is_quantized", False) or any(value.is_meta for value in state.values()):
        logger.warning(
            "the base of the adapter %s is quantised or offloaded: it was not compared with the one it was trained on",
            folder,
        )
        return
    if header["base_hash"] == base_hash(state, header.get("full", "").split(",")):
        return
    short = model.dtype if model.dtype in (torch.bfloat16, torch.float16) else None
    rounded = f"; it holds {short}: a rounded copy of the base has other values" if short else ""
    raise DataError(
        f"the adapter {folder} was trained on another base than {model.name_or_path} "
        f"(its weights are not {header['base_hash']}{rounded}); name the folder of its own"
    )


def base_hash(state: Mapping[str, Tensor], full: Collection[str]) -> str:
    """Returns the weights_hash of a model without its children `full` and without adapters."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        added = any(part == "modules_to_save" or part.startswith(ADAPTER_PREFIXES) for part in parts)
        if parts[0] not in full and not added:
            plain[".".join(parts)] = value
    return weights_hash(plain)


def has_adapters(model: nn.Module) -> bool:
    """Returns whether the model has an adapter."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Activates one of the adapters of the model, or none."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            module.enable_adapters(name is not None)
    if name is not None:
        set_adapter(model, _peft_name(name), inference_mode=True)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merges an adapter into its base `model`, which is changed, and returns a whole model without layers of peft.

    Raises:
        DataError: as for `attach_adapter`, or an adapted layer shares its weights with another module.
    """
    attach_adapter(model, folder)
    return merge_into_base(model, f"the adapter {folder}")


def _peft_name(name: str) -> str:
    # A prefix: peft compares names of adapters with names of modules, and torch refuses a submodule named `keys`.
    return f"adapter-{name}"


def _outermost_namesakes(keys: Collection[str], name: str) -> list[str]:
    """Returns the outermost modules of `keys` that end with `name`, without that module and its submodules."""
    ends = [key for key in keys if key.endswith(name) and not _is_inside(f"{key}.", [name])]
    return sorted(key for key in ends if not _is_inside(key, ends))


def _modules_ending_with(model: nn.Module, names: Collection[str]) -> set[str]:
    """Returns the modules that peft selects by these names."""
    return {key for key, _ in model.named_modules() if any(key.endswith(name) for name in names)}


def _is_inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def is_model_folder(path: Path) -> bool:
    """Returns whether this is the folder of a model or an adapter, from an import, an export or peft, but not a run."""
    saved = (path / "config.json").is_file() or is_adapter_folder(path)
    return saved and not (path / "run.json").is_file()
