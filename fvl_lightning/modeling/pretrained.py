"""Loading and saving through transformers and peft: tensors keep their names, and adapters load completely or fail."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import peft
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import cached_file
from transformers.utils.loading_report import LoadStateDictInfo

from fvl_lightning.core.weight_files import has_weights
from fvl_lightning.modeling.adapters.folders import (
    ADAPTER,
    CONFIG,
    WEIGHTS,
    adapter_stop_tokens,
    base_of,
    check_adapter,
    is_adapter_folder,
    modules_to_save,
    namesakes,
    read_config,
)
from fvl_lightning.modeling.adapters.layers import insert_adapter, refuse_partial_adapters
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.stopping import add_stop_tokens


class FlorenceVLPreTrainedModel(PreTrainedModel):
    """Loads and saves whole models and adapters."""

    config_class = FlorenceVLConfig
    base_model_prefix = ""
    # Empty but not None: peft then looks for tied weights in the submodules, where the language model names its head.
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: FlorenceVLConfig) -> None:
        super().__init__(config)
        # transformers renames tensors in older files of the models that are submodules of this one. Files of this model
        # keep their names, both when loading (see _load_pretrained_model) and when saving.
        self._weight_conversions: list[Any] = []
        self.register_load_state_dict_post_hook(refuse_partial_adapters)
        self.register_load_state_dict_post_hook(_add_adapter_stop_tokens)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, adapter_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Loads a model as transformers does; a folder with only an adapter is loaded onto its base.

        Raises:
            DataError: the base of an adapter is missing or differs, or the adapter does not fit it.
        """
        folder = Path(str(pretrained_model_name_or_path))
        if is_adapter_folder(folder) and not has_weights(folder):
            adapter_kwargs = {**(adapter_kwargs or {}), "_adapter_model_path": str(folder)}
            pretrained_model_name_or_path = str(base_of(folder))
        return super().from_pretrained(pretrained_model_name_or_path, *args, adapter_kwargs=adapter_kwargs, **kwargs)

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, files: Any, load_config: Any, *args: Any) -> Any:
        """Loads tensors under their names in the files; only a user or a quantiser may rename them."""
        table = {_conversion_key(conversion) for conversion in get_model_conversion_mapping(model)}
        mapping = load_config.weight_mapping or ()
        kept = [conversion for conversion in mapping if _conversion_key(conversion) not in table]
        load_config = dataclasses.replace(load_config, weight_mapping=kept)
        return PreTrainedModel._load_pretrained_model(model, state_dict, files, load_config, *args)

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, Tensor] | None = None,
        is_trainable: bool = False,
        hotswap: bool | str = "auto",
        adapter_kwargs: dict[str, Any] | None = None,
        load_config: Any = None,
        **download: Any,
    ) -> LoadStateDictInfo:
        """Adds an adapter from a folder or a hub id to the model, with peft's code and the checks of this kit.

        Args:
            peft_model_id: a folder or hub id; None with `peft_config` and `adapter_state_dict`.
            adapter_name: a name that no other adapter of the model has.
            peft_config: the adapter's configuration; None for that of the folder.
            adapter_state_dict: the adapter's tensors, in place of a folder.
            is_trainable: whether the adapter is to be trained.
            hotswap: not supported.
            adapter_kwargs: more keyword arguments for the download.
            load_config: the loading options of transformers.
            download: revision, token and other keyword arguments for a hub id.

        Raises:
            ValueError: neither a folder nor tensors, a name that is taken, or a hot swap.
            DataError: the model is not the adapter's base, a tensor has no place in it, or a tensor is missing.
        """
        name = adapter_name or ADAPTER
        if hotswap is True:
            raise ValueError("hotswap is not supported; load the adapter under another name and use set_adapter")
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise ValueError(f"there is an adapter {name} already, give another adapter_name")
        if adapter_state_dict is not None and peft_config is not None:
            state, where = adapter_state_dict, f"the adapter {name}"
        elif peft_model_id is not None:
            download = {**getattr(load_config, "download_kwargs", {}), **(adapter_kwargs or {}), **download}
            folder = _adapter_folder(str(peft_model_id), download)
            state, where = check_adapter(self, folder), f"the adapter {peft_model_id}"
            peft_config = peft_config or read_config(folder)
        else:
            raise ValueError("give peft_model_id, or peft_config and adapter_state_dict")
        if isinstance(peft_config, dict):
            peft_config = peft.get_peft_config(peft_config)
        peft_config.inference_mode = not is_trainable
        insert_adapter(self, peft_config, state, name, where)
        if not is_trainable:
            self.eval()
        return LoadStateDictInfo(set(), set(), set(), [], {}, set())

    def modules_to_save(self, *children: str) -> list[str]:
        """Returns the `modules_to_save` with which peft selects exactly these children, such as fusion and projector.

        peft selects every module whose name ends with a given name: `projector` selects the encoder's
        `image_projector` as well.
        """
        return modules_to_save(self, children)

    @property
    def peft_config(self) -> dict[str, Any]:
        """{adapter: its configuration}, which peft sets."""
        if "_peft_config" not in self.__dict__:
            raise AttributeError("the model has no adapter")
        return self.__dict__["_peft_config"]

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        # Every way to add an adapter ends here: get_peft_model, add_adapter, inject_adapter_in_model and loading.
        for config in configs.values():
            for name, others in namesakes(self, config).items():
                warnings.warn(
                    f"modules_to_save: peft takes every module whose name ends with '{name}', so that "
                    f"{', '.join(others)} is trained too; write modules_to_save=model.modules_to_save('{name}')",
                    stacklevel=2,
                )
        self.__dict__["_peft_config"] = configs

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["_peft_config"]


def _add_adapter_stop_tokens(model: Any, incompatible: Any) -> None:
    """Adds the stop tokens of loaded adapters; a load_state_dict hook, so that it also runs when peft loads."""
    for config in model.__dict__.get("_peft_config", {}).values():
        add_stop_tokens(model, adapter_stop_tokens(config))


def _conversion_key(conversion: Any) -> tuple[Any, ...]:
    """Returns the key that identifies an entry of transformers' conversion tables."""
    return type(conversion), tuple(conversion.source_patterns), tuple(conversion.target_patterns)


def _adapter_folder(place: str, download: dict[str, Any]) -> Path:
    """Returns the folder of an adapter; downloads a hub id."""
    if Path(place).is_dir():
        return Path(place, download.get("subfolder") or "")
    cached_file(place, CONFIG, **download)
    return Path(cached_file(place, WEIGHTS, **download)).parent
