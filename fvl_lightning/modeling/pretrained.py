"""Reading and writing by transformers and peft: tensors keep their names, an adapter loads completely or raises."""

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
    adapter_ends,
    base_of,
    check_adapter,
    is_adapter_folder,
    modules_to_save,
    namesakes,
    read_config,
)
from fvl_lightning.modeling.adapters.layers import put_in, refuse_partial_adapters
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.stopping import add_stop_tokens


class FlorenceVLPreTrainedModel(PreTrainedModel):
    """Reading and writing of whole models and adapters."""

    config_class = FlorenceVLConfig
    base_model_prefix = ""
    # Empty but not None: peft then looks for ties in the parts, where the language model names its tied head.
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: FlorenceVLConfig) -> None:
        super().__init__(config)
        # transformers renames tensors for older files of the models that are parts of this one; a file of this model
        # has its own names, for reading (see _load_pretrained_model) as for writing.
        self._weight_conversions: list[Any] = []
        self.register_load_state_dict_post_hook(refuse_partial_adapters)
        self.register_load_state_dict_post_hook(_take_ends)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, adapter_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Loads a model as transformers does, and a folder that holds an adapter alone on the adapter's base.

        Raises:
            DataError: the base of an adapter is not there or is another, or the adapter does not fit it.
        """
        folder = Path(str(pretrained_model_name_or_path))
        if is_adapter_folder(folder) and not has_weights(folder):
            adapter_kwargs = {**(adapter_kwargs or {}), "_adapter_model_path": str(folder)}
            pretrained_model_name_or_path = str(base_of(folder))
        return super().from_pretrained(pretrained_model_name_or_path, *args, adapter_kwargs=adapter_kwargs, **kwargs)

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, files: Any, load_config: Any, *args: Any) -> Any:
        """Loads tensors under the names they have in the files; renaming that a user or a quantiser asks for stays."""
        table = {_patterns(conversion) for conversion in get_model_conversion_mapping(model)}
        wanted = [conversion for conversion in load_config.weight_mapping or () if _patterns(conversion) not in table]
        load_config = dataclasses.replace(load_config, weight_mapping=wanted)
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
        """Puts an adapter of a folder or a hub id into the model, with peft's own code and the checks of this kit.

        Args:
            peft_model_id: folder or hub id; or None with `peft_config` and `adapter_state_dict`.
            adapter_name: a name of its own for each adapter of a model.
            download: revision, token and the like, for a hub id.

        Raises:
            ValueError: neither a place nor tensors, a name that is taken, or a hot swap, which is not supported.
            DataError: another base than the adapter's, a tensor without a place, or one that is missing.
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
        put_in(self, peft_config, state, name, where)
        if not is_trainable:
            self.eval()
        return LoadStateDictInfo(set(), set(), set(), [], {}, set())

    def modules_to_save(self, *children: str) -> list[str]:
        """Returns what peft's `modules_to_save` must name for exactly these children, such as fusion and projector.

        peft takes every module whose name ends with one it is given, so that `projector` alone is the encoder's
        `image_projector` too.
        """
        return modules_to_save(self, children)

    @property
    def peft_config(self) -> dict[str, Any]:
        """The configurations of the adapters by name, which peft leaves here."""
        if "_peft_config" not in self.__dict__:
            raise AttributeError("the model has no adapter")
        return self.__dict__["_peft_config"]

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        # Every way to put in an adapter ends here: get_peft_model, add_adapter, inject_adapter_in_model and loading.
        for config in configs.values():
            for name, others in namesakes(self, config).items():
                warnings.warn(
                    f"modules_to_save: peft takes every module whose name ends with '{name}', so that "
                    f"{', '.join(others)} learns too; write modules_to_save=model.modules_to_save('{name}')",
                    stacklevel=2,
                )
        self.__dict__["_peft_config"] = configs

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["_peft_config"]


def _take_ends(model: Any, incompatible: Any) -> None:
    """Adds the end tokens of adapters whose values have just been loaded; a hook, so that it holds for peft's too."""
    for config in model.__dict__.get("_peft_config", {}).values():
        add_stop_tokens(model, adapter_ends(config))


def _patterns(conversion: Any) -> tuple[Any, ...]:
    """By what an entry of transformers' tables is known."""
    return type(conversion), tuple(conversion.source_patterns), tuple(conversion.target_patterns)


def _adapter_folder(place: str, download: dict[str, Any]) -> Path:
    """The folder of an adapter, downloaded where it is a hub id."""
    if Path(place).is_dir():
        return Path(place, download.get("subfolder") or "")
    cached_file(place, CONFIG, **download)
    return Path(cached_file(place, WEIGHTS, **download)).parent
