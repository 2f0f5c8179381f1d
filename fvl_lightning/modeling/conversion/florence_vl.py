"""Converts a checkpoint in the layout of the released Florence-VL (llava_llama, llava_phi) to a model folder.

Tensors are copied from file to file one at a time and keep their dtype. The model itself is built on the meta device,
for the names and shapes of its tensors.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import GENERATION_CONFIG_NAME

from datamodules.encoding.question_form import QuestionForm
from fvl_lightning.core.atomic import atomic_directory, write_text_atomically
from fvl_lightning.core.errors import ConfigError, DataError, UserError, first_line
from fvl_lightning.core.pretrained import check_model_files
from fvl_lightning.core.weight_files import has_weights, match_weights, read_json, read_weights, write_weights
from fvl_lightning.encoders.florence2_files import read_image_size
from fvl_lightning.language_models.causal import as_ids
from fvl_lightning.modeling.build import empty_model, parameter_count
from fvl_lightning.modeling.conversion.florence_vl_config import (
    LANGUAGE_MODELS,
    ImportOptions,
    image_fit,
    imported_config,
    read_config,
    read_tower_config,
)
from fvl_lightning.modeling.conversion.florence_vl_names import TOWER, projector_depth, rename_weights
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.processing.processor import IMAGE_TOKEN, image_tokenizer, make_processor
from fvl_lightning.modeling.stopping import set_stop_tokens

FILE_BYTES = 2 * 1024**3
"""The largest size of a written file, unless a single tensor is larger."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip

ASKING = QuestionForm(behind_image="\n", between_images="\n")
"""The original puts a line break after every image, in training and in prompts."""


@dataclass
class ImportSummary:
    """The result of an import."""

    parameters: int
    tokens_per_image: int
    ignored: int
    """The number of keys of the checkpoint without a use here."""


def import_florence_vl(
    checkpoint: Path,
    out: Path,
    vision_tower: Path | None = None,
    tokenizer: Path | None = None,
    options: ImportOptions | None = None,
    file_bytes: int = FILE_BYTES,
) -> ImportSummary:
    """Writes the model folder `out` atomically.

    Args:
        checkpoint: the folder with config.json and safetensors or .bin files, single or with an index.
        out: the folder to write, which must not exist.
        vision_tower: the folder with the tower's config.json, and its weights if the checkpoint has none; None for
            `vision_tower` in the checkpoint's folder or the folder that its configuration names.
        tokenizer: the folder of the tokenizer; None for the checkpoint's folder.
        options: the choices of the import; None for the defaults.
        file_bytes: the largest size of a written file, unless a single tensor is larger.

    Raises:
        ConfigError: `out` exists, or the tower or the tokenizer was not found.
        DataError: the checkpoint is broken, of another model, or does not fit its own configuration.
    """
    options = options or ImportOptions()
    config = read_config(checkpoint)
    tower_folder = find_tower(checkpoint, config, vision_tower)
    model_type = LANGUAGE_MODELS[config["model_type"]]
    text_tokenizer = read_tokenizer(tokenizer or checkpoint, model_type, config["vocab_size"])
    tower = read_tower_config(tower_folder)
    image_size = read_image_size(tower_folder)
    try:
        image_token_id = text_tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        kit_config = imported_config(config, tower, image_size, image_token_id, options)
        model = empty_model(kit_config)
    except UserError:
        raise
    except Exception as error:  # each configuration class raises errors of its own
        reason = " ".join(str(error).split())
        raise DataError(f"no model can be built of the configuration of {checkpoint} and its tower: {reason}") from None
    weights = read_weights(checkpoint)
    if not any(name.startswith(TOWER) for name in weights):
        weights |= tower_weights(tower_folder)
    values, left_out = match_to_model(weights, model, str(checkpoint))
    with atomic_directory(out) as tmp_path:
        write_weights(tmp_path, values, file_bytes)
        kit_config.architectures = [type(model).__name__]
        kit_config.save_pretrained(tmp_path)
        processor = make_processor(model.image_spec, text_tokenizer, image_fit(config), asking=ASKING)
        processor.save_pretrained(tmp_path)
        set_stop_tokens(model, text_tokenizer, _generation_stop_tokens(checkpoint))
        model.generation_config.save_pretrained(tmp_path)
    return ImportSummary(parameter_count(model), model.image_spec.tokens_per_image, left_out)


def _generation_stop_tokens(checkpoint: Path) -> list[int]:
    """Returns the stop tokens of the checkpoint's generation config; an empty list without such a file."""
    path = checkpoint / GENERATION_CONFIG_NAME
    return as_ids(read_json(path).get("eos_token_id")) if path.is_file() else []


def match_to_model(
    weights: Mapping[str, Tensor], model: FlorenceVLForConditionalGeneration, where: str
) -> tuple[dict[str, Tensor], int]:
    """Returns the values of all tensors of `model`, and the number of the original's keys that are not used.

    Args:
        weights: the original's weights.
        model: the model on the meta device.
        where: the checkpoint, as errors name it.

    Raises:
        DataError: unknown keys, missing values, or shapes that differ; the message gives first names and counts.
    """
    tied = set(model.all_tied_weights_keys)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    keep_decoder = model.config.encoder["decoder"] == "keep"
    depth, held = model.config.projector["depth"], projector_depth(weights)
    if not held:
        raise DataError(f"{where} holds no projector of Florence-VL (model.mm_projector.encoder_mlp.*)")
    if held != depth:
        raise DataError(f"{where} has a projector of {held} linear layers, its mm_projector_type says {depth}")
    values = match_weights(rename_weights(weights, keep_decoder, tied=bool(tied)), wanted, where)
    return values, len(weights) - len(values)


def find_tower(checkpoint: Path, config: Mapping[str, Any], given: Path | None) -> Path:
    """Returns the folder with the tower's config.json; raises ConfigError if there is none."""
    if given is not None:
        folders = [given]
    else:
        folders = [checkpoint / "vision_tower"]
        if config.get("mm_vision_tower"):
            folders.append(checkpoint / str(config["mm_vision_tower"]))
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    looked = " or ".join(map(str, folders))
    raise ConfigError(f"the vision tower's config.json is not in {looked}, name its folder with --vision-tower")


def tower_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the weights of a vision tower's own folder, under their names in a whole Florence-VL checkpoint."""
    if not has_weights(folder):
        raise DataError(f"neither the checkpoint nor {folder} holds the vision tower's weights")
    return {TOWER + name: tensor for name, tensor in read_weights(folder).items()}


def read_tokenizer(folder: Path, model_type: str, vocabulary: int) -> Any:
    """Returns the tokenizer of a language model of `model_type`, with the image placeholder.

    The token embeddings need no row for the placeholder, which is never embedded; the original uses the id -200 for it.

    Raises:
        ConfigError: the folder has no tokenizer.
        DataError: the tokenizer cannot be read, or has more tokens than `vocabulary`.
    """
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        raise ConfigError(f"{folder} holds no tokenizer, name the folder of one with --tokenizer")
    try:
        with tempfile.TemporaryDirectory() as copy:
            # In the original's folder transformers would refuse config.json, whose model type it does not know.
            check_model_files(folder)
            for file in files:
                shutil.copyfile(file, Path(copy) / file.name)
            write_text_atomically(Path(copy) / "config.json", json.dumps({"model_type": model_type}))
            tokenizer = AutoTokenizer.from_pretrained(copy, trust_remote_code=False)
    except Exception as error:  # each tokenizer class raises errors of its own
        raise DataError(f"the tokenizer in {folder} could not be read: {first_line(error)}") from None
    if len(tokenizer) > vocabulary and not (len(tokenizer) == vocabulary + 1 and IMAGE_TOKEN in tokenizer.get_vocab()):
        raise DataError(f"the tokenizer in {folder} has {len(tokenizer)} tokens, the checkpoint's table {vocabulary}")
    return image_tokenizer(tokenizer)
