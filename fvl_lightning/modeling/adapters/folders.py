"""Adapter folders as peft writes and reads them: LoRA's tensors and the modules trained in full, never their base.

    adapter_config.json         peft's, with the base's folder and the tokens that end an answer
    adapter_model.safetensors   the tensors; in its header the hash of the base's weights
    config.json                 that of the whole model, and the processor's files
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
from fvl_lightning.core.weight_files import check_finite, read_json, weights_hash
from fvl_lightning.language_models.causal import as_ids
from fvl_lightning.modeling.adapters.layers import PREFIX, fold, put_in

logger = logging.getLogger(__name__)

ADAPTER = "default"
"""peft's name for an adapter that is the only one."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WRAPPERS = ("base_layer", "original_module", "token_adapter")
"""What peft inserts into the names of the base's own tensors."""
ADDED = tuple(PEFT_TYPE_TO_PREFIX_MAPPING.values())
"""How the names of the tensors begin that peft adds."""
AUTO_MAPPING = {"base_model_class": "AutoModelForImageTextToText", "parent_library": "transformers"}
"""With this AutoPeftModel finds the base's class; peft imports from few libraries, and from this one not."""
STOP_TOKENS = "stop_tokens"
"""Key of `auto_mapping` with the tokens that end an answer: plain peft reads no other file that could hold them."""
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
    config.auto_mapping = AUTO_MAPPING | {STOP_TOKENS: as_ids(model.generation_config.eos_token_id)}
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


def namesakes(model: nn.Module, config: PeftConfig) -> dict[str, list[str]]:
    """Returns {module that a training names in full in `modules_to_save`: others that end like it, which learn too}."""
    named = () if config.inference_mode else getattr(config, "modules_to_save", None) or ()
    split = [key.split(".") for key, _ in model.named_modules()]
    plain = [parts for parts in split if "modules_to_save" not in parts]
    keys = {".".join(part for part in parts if part not in WRAPPERS) for parts in plain}
    outside = {name: _others(keys, name) for name in named if name in keys}
    return {name: others for name, others in outside.items() if others}


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
    put_in(model, read_config(folder), state, _inside_peft(name), f"the adapter {folder}")
    use_adapter(model, name)
    model.eval()


def check_adapter(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Returns the adapter's tensors by their names in peft's file.

    Raises:
        DataError: a file that cannot be read or holds NaN, or `model` is not the base that the adapter was trained on.
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
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder / CONFIG} is no configuration of peft: {first_line(error)}") from None
    path = folder / GENERATION_CONFIG_NAME
    listed = as_ids(read_json(path).get("eos_token_id")) if path.is_file() else []
    ends = list(dict.fromkeys([*adapter_ends(config), *listed]))
    config.auto_mapping = (config.auto_mapping or AUTO_MAPPING) | {STOP_TOKENS: ends}
    return config


def adapter_ends(config: PeftConfig) -> list[int]:
    """Returns the tokens that end an adapter's answers; none where its configuration does not name them."""
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
    """Returns the weights_hash of a model without its children `full`, whatever adapters have been put into it."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        added = any(part == "modules_to_save" or part.startswith(ADDED) for part in parts)
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
    """Returns a whole model of the base `model` and an adapter, without any trace of peft; `model` is used up.

    Raises:
        DataError: as for `attach_adapter`, or the adapter changes weights that another part of the model shares.
    """
    attach_adapter(model, folder)
    return fold(model, f"the adapter {folder}")


def _inside_peft(name: str) -> str:
    # A name of its own: peft looks for names among those of modules, and torch has no module called `keys`.
    return f"adapter-{name}"


def _others(keys: Collection[str], name: str) -> list[str]:
    """The outermost of the modules `keys` that end like `name` and are neither it nor inside it."""
    ends = [key for key in keys if key.endswith(name) and not _inside(f"{key}.", [name])]
    return sorted(key for key in ends if not _inside(key, ends))


def _matching(model: nn.Module, names: Collection[str]) -> set[str]:
    """The modules that peft takes for these names."""
    return {key for key, _ in model.named_modules() if any(key.endswith(name) for name in names)}


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def is_model_folder(path: Path) -> bool:
    """Whether this is a saved model or adapter on its own, as an import, an export or peft makes it, and no run."""
    saved = (path / "config.json").is_file() or is_adapter_folder(path)
    return saved and not (path / "run.json").is_file()
