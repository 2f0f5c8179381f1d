"""A model folder for the hub, without a bit of it changed: weights in files of a size, and a card beside them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from fvl_lightning.core.atomic import atomic_directory
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.weight_files import match_weights, read_json, read_weights, write_weights
from fvl_lightning.language_models.causal import as_ids
from fvl_lightning.modeling.adapters.folders import CONFIG, base_of, merge_adapter, read_config
from fvl_lightning.modeling.adapters.folders import WEIGHTS as ADAPTER_WEIGHTS
from fvl_lightning.modeling.adapters.layers import PREFIX
from fvl_lightning.modeling.build import PROCESSOR_FILE, empty_model, load_model, parameter_count
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor
from fvl_lightning.modeling.stopping import set_stop_tokens

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [florence-vl, fvl_lightning]
---

# {name}

{encoder} -> {fusion} -> {projector} -> {language_model}; {parameters:.1f} M parameters, {tokens} tokens per image.
Made with fvl_lightning; `import fvl_lightning.auto` makes this kind of model known to transformers:

```python
import fvl_lightning.auto
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


def export_model(folder: Path, out: Path, file_bytes: int) -> int:
    """Copies a model folder to `out`, whole or not at all, and returns its number of parameters.

    Args:
        folder: as a run or an import makes it.
        file_bytes: largest size of a weight file, unless one tensor is larger.

    Raises:
        ConfigError: `out` exists.
        DataError: `folder` holds no model, or it cannot be read.
    """
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no saved model ({name} is missing)")
    weights = read_weights(folder)
    config, processor = FlorenceVLConfig.from_pretrained(folder), FlorenceVLProcessor.from_pretrained(folder)
    model = empty_model(config)
    _check_weights(weights, model, folder)
    parameters = parameter_count(model)
    with atomic_directory(out) as beside:
        write_weights(beside, weights, file_bytes)
        left_out = {file for pattern in WEIGHTS for file in folder.glob(pattern)}
        for file in sorted(set(folder.iterdir()) - left_out):
            if file.is_file():
                shutil.copyfile(file, beside / file.name)
        _list_stop_tokens(beside, model, processor.tokenizer)
        (beside / "README.md").write_text(card(folder, out.name, parameters), encoding="utf-8")
    return parameters


def export_adapter(folder: Path, out: Path, file_bytes: int) -> tuple[int, Path]:
    """Copies an adapter's folder to `out`, with its base as `out`/base where that lies in the run's own folder.

    Returns:
        Its number of parameters and the folder of its base.

    Raises:
        ConfigError: `out` exists.
        DataError: the base is not there.
    """
    base = base_of(folder)
    own = base.resolve() == (folder.parent / "base").resolve()
    described = folder if (folder / "config.json").is_file() else base
    model = empty_model(FlorenceVLConfig.from_pretrained(described))
    buffers = {PREFIX + name for name, _ in model.named_buffers()}
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    parameters = sum(value.numel() for name, value in tensors.items() if name not in buffers)
    with atomic_directory(out) as beside:
        for file in folder.iterdir():
            if file.is_file():
                shutil.copyfile(file, beside / file.name)
        config = read_json(folder / CONFIG)
        if (beside / PROCESSOR_FILE).is_file():
            _list_stop_tokens(beside, model, FlorenceVLProcessor.from_pretrained(beside).tokenizer)
            config["auto_mapping"] = read_config(beside).auto_mapping
        if own:
            export_model(base, beside / "base", file_bytes)
            base = out / "base"
            config["base_model_name_or_path"] = str(base.resolve())
        (beside / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        text = ADAPTER_CARD.format(name=out.name, parameters=parameters / 1e6, rank=config.get("r"), base=base)
        (beside / "README.md").write_text(text, encoding="utf-8")
    return parameters, base


def export_merged(folder: Path, base: Path | None, out: Path, file_bytes: int) -> int:
    """Writes the whole model that an adapter and its base make together; returns its number of parameters.

    Args:
        base: its folder, where it is not the one that the adapter names.

    Raises:
        ConfigError: `out` exists.
        DataError: the base is not there, or is another.
    """
    with atomic_directory(out) as beside:
        beneath = base_of(folder, base)
        model = merge_adapter(load_model(beneath).model, folder)
        # A folder that peft wrote has no processor: that of the base is the model's.
        source = folder if (folder / PROCESSOR_FILE).is_file() else beneath
        set_stop_tokens(model, FlorenceVLProcessor.from_pretrained(source).tokenizer)
        model.save_pretrained(beside, max_shard_size=file_bytes)
        weights = {file for pattern in WEIGHTS for file in source.glob(pattern)}
        for file in sorted(set(source.iterdir()) - weights):
            if file.is_file() and file.name not in (CONFIG, "config.json", GENERATION_CONFIG_NAME):
                shutil.copyfile(file, beside / file.name)
        parameters = parameter_count(model)
        (beside / "README.md").write_text(card(beside, out.name, parameters), encoding="utf-8")
    return parameters


def _check_weights(weights: Mapping[str, Tensor], model: PreTrainedModel, folder: Path) -> None:
    """Raises DataError where the files of a folder do not hold exactly the model of its configuration."""
    tied = set(model.all_tied_weights_keys)
    wanted = {name: value for name, value in model.state_dict().items() if name not in tied}
    match_weights({name: (name, value) for name, value in weights.items() if name not in tied}, wanted, str(folder))


def _list_stop_tokens(folder: Path, model: PreTrainedModel, tokenizer: Any) -> None:
    """Adds what training ends answers with to a folder's generation config, of which the rest may be its user's.

    Folders of earlier versions list the tokenizer's eos alone.
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
    """The README of a model folder on the hub."""
    config = FlorenceVLConfig.from_pretrained(folder)
    slots = {slot: config.choice(slot) for slot in COMPONENTS}
    return CARD.format(
        name=name,
        parameters=parameters / 1e6,
        tokens=FlorenceVLProcessor.from_pretrained(folder).tokens_per_image,
        language_model=config.get_text_config().model_type,
        **{slot: choice.name for slot, choice in slots.items() if slot != "language_model"},
    )
