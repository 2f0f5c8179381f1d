"""A checkpoint in the layout of the released Florence-VL (llava_llama, llava_phi) becomes this kit's model folder.

The values go from the checkpoint's files to the new ones one tensor at a time and keep their number type; the model
itself is only built on the meta device, for the names and shapes that must be filled.
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

from datamodules.encoding.question_form import Asking
from fvl_lightning.core.atomic import atomic_directory, write_text_atomically
from fvl_lightning.core.errors import ConfigError, DataError, UserError, first_line
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
from fvl_lightning.modeling.conversion.florence_vl_names import TOWER, projector_depth, renamed
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.processing.processor import IMAGE_TOKEN, image_tokenizer, make_processor
from fvl_lightning.modeling.stopping import set_stop_tokens

FILE_BYTES = 2 * 1024**3
"""Largest size of a written file, unless one tensor is larger."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)

ASKING = Asking(behind_image="\n", between_images="\n")
"""The original puts a line break behind every image, in training and where it is asked."""


@dataclass
class Imported:
    """What an import made."""

    parameters: int
    tokens_per_image: int
    ignored: int
    """Keys of the checkpoint that have no use here."""


def import_florence_vl(
    checkpoint: Path,
    out: Path,
    vision_tower: Path | None = None,
    tokenizer: Path | None = None,
    options: ImportOptions | None = None,
    file_bytes: int = FILE_BYTES,
) -> Imported:
    """Writes the model folder `out`, whole or not at all.

    Args:
        checkpoint: folder with config.json and safetensors or .bin files, single or with an index.
        out: folder to make.
        vision_tower: folder with the tower's config.json, and its weights where the checkpoint holds none; otherwise
            `vision_tower` in the checkpoint's folder or a folder that its configuration names.
        tokenizer: folder of the tokenizer; otherwise the checkpoint's.

    Raises:
        ConfigError: `out` exists, or there is no tower or tokenizer where one was looked for.
        DataError: a checkpoint that is broken, of another model, or does not fit its own configuration.
    """
    options = options or ImportOptions()
    config = read_config(checkpoint)
    tower_folder = find_tower(checkpoint, config, vision_tower)
    words = read_tokenizer(tokenizer or checkpoint, LANGUAGE_MODELS[config["model_type"]], config["vocab_size"])
    tower = read_tower_config(tower_folder)
    image_size = read_image_size(tower_folder)
    try:
        ours = imported_config(config, tower, image_size, words.convert_tokens_to_ids(IMAGE_TOKEN), options)
        model = empty_model(ours)
    except UserError:
        raise
    except Exception as error:  # each configuration class refuses values in its own way
        reason = " ".join(str(error).split())
        raise DataError(f"no model can be built of the configuration of {checkpoint} and its tower: {reason}") from None
    weights = read_weights(checkpoint)
    if not any(name.startswith(TOWER) for name in weights):
        weights |= tower_weights(tower_folder)
    values, left_out = match_to_model(weights, model, str(checkpoint))
    with atomic_directory(out) as beside:
        write_weights(beside, values, file_bytes)
        ours.architectures = [type(model).__name__]
        ours.save_pretrained(beside)
        make_processor(model.image_spec, words, image_fit(config), asking=ASKING).save_pretrained(beside)
        set_stop_tokens(model, words, _generation_ends(checkpoint))
        model.generation_config.save_pretrained(beside)
    return Imported(parameter_count(model), model.image_spec.tokens_per_image, left_out)


def _generation_ends(checkpoint: Path) -> list[int]:
    """The end tokens that the checkpoint's own generation config lists; none where it has no such file."""
    path = checkpoint / GENERATION_CONFIG_NAME
    return as_ids(read_json(path).get("eos_token_id")) if path.is_file() else []


def match_to_model(
    weights: Mapping[str, Tensor], model: FlorenceVLForConditionalGeneration, where: str
) -> tuple[dict[str, Tensor], int]:
    """Every value of `model` out of the original's weights, and how many of those are left out on purpose.

    Raises:
        DataError: a key without a place, a value that is not filled, or shapes that differ; with first names, counts.
    """
    tied = set(model.all_tied_weights_keys)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    keep_decoder = model.config.encoder["decoder"] == "keep"
    depth, held = model.config.projector["depth"], projector_depth(weights)
    if not held:
        raise DataError(f"{where} holds no projector of Florence-VL (model.mm_projector.encoder_mlp.*)")
    if held != depth:
        raise DataError(f"{where} has a projector of {held} linear layers, its mm_projector_type says {depth}")
    values = match_weights(renamed(weights, keep_decoder, tied=bool(tied)), wanted, where)
    return values, len(weights) - len(values)


def find_tower(checkpoint: Path, config: Mapping[str, Any], given: Path | None) -> Path:
    """The folder with the tower's config.json."""
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
    """The weights of a tower in a folder of its own, under their names inside a checkpoint."""
    if not has_weights(folder):
        raise DataError(f"neither the checkpoint nor {folder} holds the vision tower's weights")
    return {TOWER + name: tensor for name, tensor in read_weights(folder).items()}


def read_tokenizer(folder: Path, model_type: str, vocabulary: int) -> Any:
    """The tokenizer of a language model of `model_type`, with the image placeholder.

    The original marks an image by -200, which is no row of the token table. Neither is the placeholder's id read from
    it, so that the table needs no row more for it.
    """
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        raise ConfigError(f"{folder} holds no tokenizer, name the folder of one with --tokenizer")
    try:
        with tempfile.TemporaryDirectory() as apart:
            # Beside the original's config.json, whose type transformers does not know, it would not be read.
            for file in files:
                shutil.copyfile(file, Path(apart) / file.name)
            write_text_atomically(Path(apart) / "config.json", json.dumps({"model_type": model_type}))
            tokenizer = AutoTokenizer.from_pretrained(apart)
    except Exception as error:  # each tokenizer class refuses broken files in its own way
        raise DataError(f"the tokenizer in {folder} could not be read: {first_line(error)}") from None
    if len(tokenizer) > vocabulary and not (len(tokenizer) == vocabulary + 1 and IMAGE_TOKEN in tokenizer.get_vocab()):
        raise DataError(f"the tokenizer in {folder} has {len(tokenizer)} tokens, the checkpoint's table {vocabulary}")
    return image_tokenizer(tokenizer)
