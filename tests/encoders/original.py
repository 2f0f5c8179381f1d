"""The numerical fixture of the original Florence-VL, imported as a user imports a checkpoint."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fvl_lightning.cli.models.import_checkpoint import florence_vl
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration

FOLDER = Path(__file__).parents[1] / "fixtures" / "parity"
CHECKPOINT = FOLDER / "llama"
TOWER = FOLDER / "vision_tower"
VOCABULARY = 320
"""Of the checkpoint's language model; the placeholder's id is the next one."""
TASKS = ("caption", "ocr", "grounding")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """One safetensors file of the fixture."""
    return load_file(FOLDER / name)


@cache
def expected() -> dict[str, Any]:
    """Losses, gradient norms and generations."""
    return json.loads((FOLDER / "llama_expected.json").read_text(encoding="utf-8"))


@cache
def imported(
    pooled_token: Literal["keep", "drop"] = "keep", prompt_pads: Literal["attend", "mask"] = "attend"
) -> FlorenceVLForConditionalGeneration:
    """The checkpoint through the command and back from the folder it wrote, in float32 and eval mode."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "tokenizer", VOCABULARY)
        florence_vl(
            CHECKPOINT,
            folder / "model",
            vision_tower=TOWER,
            tokenizer=folder / "tokenizer",
            pooled_token=pooled_token,
            prompt_pads=prompt_pads,
        )
        return load_model(folder / "model").model.float()


def encoder(
    pooled_token: Literal["keep", "drop"] = "keep", prompt_pads: Literal["attend", "mask"] = "attend", **changes: Any
) -> Florence2Encoder:
    """The imported encoder in eval mode; changes of its Config, such as its sources, leave the weights as they are."""
    found = imported(pooled_token, prompt_pads).encoder
    if not changes:
        return found
    built = Florence2Encoder(dataclasses.replace(found.config, **changes))
    built.load_state_dict(found.state_dict())
    return built.eval()


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of `vocabulary` words, without an image placeholder."""
    special = ["<pad>", "<bos>", "<eos>"]
    words = {word: id_ for id_, word in enumerate([*special, *(f"w{k}" for k in range(3, vocabulary))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    ).save_pretrained(folder)
