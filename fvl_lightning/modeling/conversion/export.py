"""Exports a model folder for the hub: the same weights in files of a given size, and a model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from fvl_lightning.core.atomic import atomic_directory, write_text_atomically
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.weight_files import match_weights, read_json, read_weights, write_weights
from fvl_lightning.language_models.causal import as_ids
from fvl_lightning.modeling.adapters.folders import CONFIG, base_of, merge_adapter, read_config
from fvl_lightning.modeling.adapters.folders import WEIGHTS as ADAPTER_WEIGHTS
from fvl_lightning.modeling.adapters.layers import PREFIX
from fvl_lightning.modeling.build import PROCESSOR_FILE, empty_model, load_model, parameter_count
from fvl_lightning.modeling.configuration import FlorenceVLConfig, read_model_config
from fvl_lightning.modeling.plugin_record import copy_plugins
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor, read_processor
from fvl_lightning.modeling.stopping import set_stop_tokens

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [florence-vl, fvl_lightning]
---

# {name}

{encoder} -> {fusion} -> {projector} -> {language_model}; {parameters:.1f} M parameters, {tokens}.
Made with fvl_lightning; `import fvl_lightning.auto` makes this kind of model known to transformers. Without it,
transformers does not recognize the model type `florence_vl` and advises an upgrade, which does not help.
{plugins}
```python
import fvl_lightning.auto{imports}
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
content = [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
written = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(written[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""

ADAPTER_CARD = """---
library_name: peft
pipeline_tag: image-text-to-text
tags: [florence-vl, fvl_lightning, lora]
---

# {name}

An adapter with {parameters:.1f} M parameters, rank {rank}, for a model made with fvl_lightning: LoRA's tensors, and
the parts that were trained in full beside them. Its base is not part of it.

```python
import fvl_lightning.auto
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), "{name}")
```
"""


PLUGINS = """
Components of this model are not part of fvl_lightning: {names}. Read the code before you import it.
"""


def export_model(folder: Path, out: Path, file_bytes: int, with_plugins: bool = False) -> int:
    """Copies a model folder to `out` atomically, and returns the number of parameters.

    Args:
        folder: the model folder of a run or an import.
        out: the folder to write, which must not exist.
        file_bytes: the largest size of a weight file, unless a single tensor is larger.
        with_plugins: whether to copy the code of plugins that the model needs.

    Raises:
        ConfigError: `out` exists, or a plugin cannot be copied.
        DataError: `folder` has no model, or the model cannot be read.
    """
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no saved model ({name} is missing)")
    weights = read_weights(folder)
    config, processor = read_model_config(folder), read_processor(folder)
    model = empty_model(config)
    _check_weights(weights, model, folder)
    parameters = parameter_count(model)
    with atomic_directory(out) as tmp_path:
        write_weights(tmp_path, weights, file_bytes)
        left_out = {file for pattern in WEIGHTS for file in folder.glob(pattern)}
        for file in sorted(set(folder.iterdir()) - left_out):
            if file.is_file():
                shutil.copyfile(file, tmp_path / file.name)
        _list_stop_tokens(tmp_path, model, processor.tokenizer)
        _add_plugins(tmp_path, model.config, with_plugins)
        (tmp_path / "README.md").write_text(card(tmp_path, out.name, parameters), encoding="utf-8")
    return parameters


def export_adapter(folder: Path, out: Path, file_bytes: int, with_plugins: bool = False) -> tuple[int, Path]:
    """Copies an adapter's folder to `out` atomically; a base in the run's own folder becomes `out`/base.

    Returns:
        The adapter's number of parameters and the folder of its base.

    Raises:
        ConfigError: `out` exists.
        DataError: the base is missing.
    """
    base = base_of(folder)
    has_own_base = base.resolve() == (folder.parent / "base").resolve()
    config_folder = folder if (folder / "config.json").is_file() else base
    model = empty_model(read_model_config(config_folder))
    buffers = {PREFIX + name for name, _ in model.named_buffers()}
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    parameters = sum(value.numel() for name, value in tensors.items() if name not in buffers)
    with atomic_directory(out) as tmp_path:
        for file in folder.iterdir():
            if file.is_file():
                shutil.copyfile(file, tmp_path / file.name)
        config = read_json(folder / CONFIG)
        if (tmp_path / PROCESSOR_FILE).is_file():
            _list_stop_tokens(tmp_path, model, read_processor(tmp_path).tokenizer)
            config["auto_mapping"] = read_config(tmp_path).auto_mapping
        if has_own_base:
            export_model(base, tmp_path / "base", file_bytes, with_plugins)
            base = out / "base"
            config["base_model_name_or_path"] = str(base.resolve())
        elif with_plugins:
            copy_plugins(model.config.plugins or [], tmp_path)
        (tmp_path / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        text = ADAPTER_CARD.format(name=out.name, parameters=parameters / 1e6, rank=config.get("r"), base=base)
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return parameters, base


def export_merged(
    folder: Path, base: Path | None, out: Path, file_bytes: int, with_plugins: bool = False
) -> int:
    """Merges an adapter into its base, writes the model to `out` atomically, and returns its number of parameters.

    Args:
        folder: the folder of the adapter.
        base: the folder of the base; None for the one that the adapter names.
        out: the folder to write, which must not exist.
        file_bytes: the largest size of a weight file, unless a single tensor is larger.

    Raises:
        ConfigError: `out` exists.
        DataError: the base is missing or differs.
    """
    with atomic_directory(out) as tmp_path:
        model_folder = base_of(folder, base)
        model = merge_adapter(load_model(model_folder).model, folder)
        # A folder that peft wrote has no processor, so that the base's is used.
        source = folder if (folder / PROCESSOR_FILE).is_file() else model_folder
        set_stop_tokens(model, read_processor(source).tokenizer)
        model.save_pretrained(tmp_path, max_shard_size=file_bytes)
        weights = {file for pattern in WEIGHTS for file in source.glob(pattern)}
        for file in sorted(set(source.iterdir()) - weights):
            if file.is_file() and file.name not in (CONFIG, "config.json", GENERATION_CONFIG_NAME):
                shutil.copyfile(file, tmp_path / file.name)
        parameters = parameter_count(model)
        _add_plugins(tmp_path, model.config, with_plugins)
        (tmp_path / "README.md").write_text(card(tmp_path, out.name, parameters), encoding="utf-8")
    return parameters


def _add_plugins(folder: Path, config: FlorenceVLConfig, copy: bool) -> None:
    """Names the model's plugins in the model's config.json, which earlier versions did not, and copies their code."""
    content = read_json(folder / "config.json")
    if config.plugins and not content.get("plugins"):
        content["plugins"] = config.plugins
        write_text_atomically(folder / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")
    if copy:
        copy_plugins(config.plugins or [], folder)


def _check_weights(weights: Mapping[str, Tensor], model: PreTrainedModel, folder: Path) -> None:
    """Raises DataError unless the weights of a folder are exactly those of its configuration's model."""
    tied = set(model.all_tied_weights_keys)
    wanted = {name: value for name, value in model.state_dict().items() if name not in tied}
    match_weights({name: (name, value) for name, value in weights.items() if name not in tied}, wanted, str(folder))


def _list_stop_tokens(folder: Path, model: PreTrainedModel, tokenizer: Any) -> None:
    """Adds the stop tokens to the generation config of a folder, and keeps its other fields, which a user may have set.

    Folders of earlier versions list only the tokenizer's eos.
    """
    path = folder / GENERATION_CONFIG_NAME
    content = read_json(path) if path.is_file() else {}
    listed = as_ids(content.get("eos_token_id"))
    set_stop_tokens(model, tokenizer, listed)
    ends = as_ids(model.generation_config.eos_token_id)
    if set(ends) - set(listed):
        content["eos_token_id"] = list(dict.fromkeys([*listed, *ends]))
        GenerationConfig(**content).save_pretrained(folder)


def card(folder: Path, name: str, parameters: int) -> str:
    """Returns the model card of a model folder."""
    config = read_model_config(folder)
    slots = {slot: config.choice(slot) for slot in COMPONENTS}
    record = config.plugins or []
    named = [f"{entry['slot']} `{entry['component']}` of `{entry['plugin']}`" for entry in record]
    imported = ", ".join(f'"{plugin}"' for plugin in dict.fromkeys(entry["plugin"] for entry in record))
    return CARD.format(
        name=name,
        parameters=parameters / 1e6,
        tokens=_image_tokens(read_processor(folder)),
        language_model=config.get_text_config().model_type,
        plugins=PLUGINS.format(names=", ".join(named)) if record else "",
        imports=f"\nfrom fvl_lightning import import_plugins\n\nimport_plugins({imported})" if record else "",
        **{slot: choice.name for slot, choice in slots.items() if slot != "language_model"},
    )


def _image_tokens(processor: FlorenceVLProcessor) -> str:
    """Returns how many tokens an image has, in a few words."""
    tiling = processor.image_processor.tiling
    if tiling is None:
        return f"{processor.tokens_per_image} tokens per image"
    return f"{processor.tokens_per_image} tokens per tile, and up to {tiling.most} tiles per image"
