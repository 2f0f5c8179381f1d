"""A model folder for the hub, without a bit of it changed: weights in files of a size, and a card beside them."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.folders import appearing
from fvl_lightning.core.weight_files import read_json, read_weights, write_weights
from fvl_lightning.modeling.adapters import CONFIG, base_of, merge_adapter
from fvl_lightning.modeling.adapters import WEIGHTS as ADAPTER_WEIGHTS
from fvl_lightning.modeling.build import PROCESSOR_FILE, load_model
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.processor import FlorenceVLProcessor

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [florence-vl, fvl_lightning]
---

# {name}

{encoder} -> {fusion} -> {projector} -> {language_model}; {parameters:.1f} M parameters, {tokens} tokens per image.
Made with fvl_lightning, whose import makes this kind of model known to transformers:

```python
import fvl_lightning
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
import fvl_lightning
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
    parameters = sum(value.numel() for value in weights.values())
    with appearing(out) as beside:
        write_weights(beside, weights, file_bytes)
        left_out = {file for pattern in WEIGHTS for file in folder.glob(pattern)}
        for file in sorted(set(folder.iterdir()) - left_out):
            if file.is_file():
                shutil.copyfile(file, beside / file.name)
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
    parameters = sum(value.numel() for value in load_file(folder / ADAPTER_WEIGHTS).values())
    with appearing(out) as beside:
        for file in folder.iterdir():
            if file.is_file():
                shutil.copyfile(file, beside / file.name)
        config = read_json(folder / CONFIG)
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
    with appearing(out) as beside:
        beneath = base_of(folder, base)
        model = merge_adapter(load_model(beneath).model, folder)
        model.save_pretrained(beside, max_shard_size=file_bytes)
        # A folder that peft wrote has no processor: that of the base is the model's.
        source = folder if (folder / PROCESSOR_FILE).is_file() else beneath
        weights = {file for pattern in WEIGHTS for file in source.glob(pattern)}
        for file in sorted(set(source.iterdir()) - weights):
            if file.is_file() and file.name not in (CONFIG, "config.json", "generation_config.json"):
                shutil.copyfile(file, beside / file.name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        (beside / "README.md").write_text(card(beside, out.name, parameters), encoding="utf-8")
    return parameters


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
