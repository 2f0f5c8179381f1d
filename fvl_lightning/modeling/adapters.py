"""Adapter folders as peft writes and reads them: LoRA's tensors and the modules trained in full, never their base.

    adapter_config.json         peft's, with the base's folder
    adapter_model.safetensors   the tensors; in its header the hash of the base's weights
    config.json                 that of the whole model, and the processor's files
"""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import peft
import torch
from peft.functional import get_peft_model_state_dict, inject_adapter_in_model, set_adapter, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.core.hashes import weights_hash
from fvl_lightning.core.weight_files import read_json

ADAPTER = "default"
"""peft's name for an adapter that is the only one."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What stands before the names in peft's files."""
LISTS = nn.ModuleDict | nn.ModuleList
"""What peft cannot take as a module trained in full: it has no forward."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than a whole model."""
    return (folder / CONFIG).is_file()


def save_adapter(model: PreTrainedModel, folder: Path, base: Path, base_hash: str, full: Collection[str]) -> None:
    """Writes the adapter that was put into `model`, and its children `full`, which were trained beside it.

    Args:
        base: the folder of the whole model under the adapter.
        base_hash: weights_hash of the base without `full`, whose values in the base do not count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = str(base.resolve())
    config.modules_to_save = modules_to_save(model, full) or None
    config.inference_mode = True
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    assert len(state) == sum(".lora_" in name for name, _ in model.named_parameters()), "adapters would be lost"
    saved = _matching(model, config.modules_to_save or ())
    state |= {name: value for name, value in model.state_dict().items() if _inside(name, saved)}
    tensors = {PREFIX + name: value.contiguous().clone() for name, value in state.items()}
    header = {"format": "pt", "base_hash": base_hash, "full": ",".join(sorted(full))}
    save_file(tensors, folder / WEIGHTS, metadata=header)
    config.save_pretrained(folder)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def modules_to_save(model: nn.Module, children: Collection[str]) -> list[str]:
    """Names under which peft finds the children, and nothing else where that can be had.

    peft takes every module whose name ENDS with one of them: `projector` would be `encoder.image_projector` too, so
    that the parts of a projector are named instead.
    """
    names: list[str] = []
    for child in children:
        module = model.get_submodule(child)
        if not module.state_dict():
            continue
        own = any(True for _ in module.parameters(recurse=False))
        if (isinstance(module, LISTS) or _matching(model, [child]) != {child}) and not own:
            names += modules_to_save(model, [f"{child}.{name}" for name, _ in module.named_children()])
        else:
            names.append(child)
    return names


def base_of(folder: Path, given: Path | None = None) -> Path:
    """The folder of the model under an adapter: `given`, or the one it was trained on, or `base` in or beside it.

    Raises:
        DataError: none of them is there, or it is an adapter itself.
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
    """Puts the adapter of a folder into a model without one, or beside others, and has it used.

    Raises:
        DataError: files that cannot be read, or another base than the adapter's.
    """
    state = check_adapter(model, folder)
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are what is wanted
            inject_adapter_in_model(config, model, _inside_peft(name))
        result = set_peft_model_state_dict(model, state, adapter_name=_inside_peft(name))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise DataError(f"the adapter {folder} does not fit its base: {first_line(error)}") from None
    if result.unexpected_keys:
        raise DataError(f"the adapter {folder} has tensors without a place in its base: {result.unexpected_keys[0]}")
    lacking = [key for key in result.missing_keys if f".{_inside_peft(name)}." in f"{key}." and ".lora_" in key]
    if lacking:
        raise DataError(f"the adapter {folder} lacks {lacking[0]}")
    use_adapter(model, name)
    model.eval()


def check_adapter(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in the model; DataError where `model` is not the base it was trained on."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            header = file.metadata() or {}
            state = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder / WEIGHTS} is not a readable safetensors file: {first_line(error)}") from None
    if "base_hash" in header and header["base_hash"] != base_hash(model.state_dict(), header["full"].split(",")):
        short = model.dtype if model.dtype in (torch.bfloat16, torch.float16) else None
        rounded = f"; it holds {short}: a rounded copy of the base has other values" if short else ""
        raise DataError(
            f"the adapter {folder} was trained on another base than {model.name_or_path} "
            f"(its weights are not {header['base_hash']}{rounded}); name the folder of its own"
        )
    return state


def base_hash(state: Mapping[str, Tensor], full: Collection[str]) -> str:
    """weights_hash of a model without its children `full`, whatever adapters have been put into it."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
        added = any(part == "modules_to_save" or part.startswith("lora_") for part in parts)
        if parts[0] not in full and not added:
            plain[".".join(parts)] = value
    return weights_hash(plain)


def has_adapters(model: nn.Module) -> bool:
    """Whether an adapter has been put into the model."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Has the model compute with this one of its adapters, or with none."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            module.enable_adapters(name is not None)
    if name is not None:
        set_adapter(model, _inside_peft(name), inference_mode=True)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A whole model of the base `model` and an adapter, without any trace of peft; `model` is used up.

    Raises:
        DataError: as for `attach_adapter`.
    """
    check_adapter(model, folder)
    return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def _inside_peft(name: str) -> str:
    # A name of its own: peft looks for names among those of modules, and torch has no module called `keys`.
    return f"adapter-{name}"


def _matching(model: nn.Module, names: Collection[str]) -> set[str]:
    """The modules that peft takes for these names."""
    return {key for key, _ in model.named_modules() if any(key.endswith(name) for name in names)}


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
