"""Models of a few thousand parameters, with everything the real ones have; shared by the tests of several folders."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from datamodules.demo.data import DemoData
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.experiment import ExperimentConfig, LoraConfig, NormalizeConfig, OptimizerConfig, TrainerConfig
from fvl_lightning.core.types import IGNORE_INDEX, Batch, PromptedBatch
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.language_models.causal import CausalLanguageModel
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.initialization import initialize
from fvl_lightning.modeling.processing.processor import make_processor

VOCABULARY = 40
PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
"""Ids of the special tokens; words are 4, 5, ..."""
PIXELS = 16
"""Pixels per side; the two stages of the tower make grids of 4 x 4 and 2 x 2 of it."""
TOKENS = 4
"""Tokens of one image, the pooled one dropped."""
PROMPT_IDS = {"caption": [BOS, 5, 6, 7, 8, EOS], "ocr": [BOS, 9, EOS], "grounding": [BOS, 10, 11, EOS]}
"""Prompts of three lengths, so that the shorter ones are padded."""

FLORENCE2: dict[str, Any] = {
    "vision_config": {
        "depths": [1, 2],
        "embed_dim": [8, 16],
        "num_heads": [1, 2],
        "num_groups": [1, 2],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 3,
        "projection_dim": 16,
        "drop_path_rate": 0.0,
        "initializer_range": 0.1,
    },
    "text_config": {
        "model_type": "bart",
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "init_std": 0.1,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
    },
}
"""Two DaViT stages of unlike depth and width, and two BART layers a side. A window of 3 does not divide the grids."""

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def encoder_config(**changes: Any) -> Florence2Encoder.Config:
    """A resolved Config of the tiny Florence-2; prompts as ids, so that it needs no tokenizer."""
    fields = {"model": FLORENCE2, "image_size": PIXELS, "prompt_ids": PROMPT_IDS} | changes
    return Florence2Encoder.Config(**fields)


def tiny_encoder(seed: int = 0, **changes: Any) -> Florence2Encoder:
    """The tiny Florence-2 with its initial weights, in eval mode."""
    return initialized("encoder", Florence2Encoder(encoder_config(**changes)), seed).eval()


def model_config(
    fusion: str | dict[str, Any] = "concat",
    projector: str | dict[str, Any] = "mlp",
    image_token_id: int = IMAGE,
    llama: dict[str, Any] | None = None,
    normalize: bool = False,
    **encoder: Any,
) -> FlorenceVLConfig:
    """The configuration of a whole tiny model."""
    config = {"name": "florence2", **dataclasses.asdict(encoder_config(**encoder))}
    return FlorenceVLConfig(
        encoder=config,
        fusion={"name": fusion} if isinstance(fusion, str) else fusion,
        projector={"name": projector} if isinstance(projector, str) else projector,
        language_model={"name": "causal"},
        normalize_sources=normalize,
        normalize_output=normalize,
        image_token_id=image_token_id,
        text_config=LLAMA if llama is None else llama,
    )


def tiny_model(seed: int = 0, **changes: Any) -> FlorenceVLForConditionalGeneration:
    """A whole tiny model with its initial weights, in eval mode."""
    model = FlorenceVLForConditionalGeneration(model_config(**changes))
    initialize(model, seed)
    return model.eval()


def initialized(slot: str, component: nn.Module, seed: int = 0) -> nn.Module:
    """`component` with the values it would have as `slot` of a whole model of that seed."""
    initialize(Holder(slot, component), seed)
    return component


class Holder(nn.Module):
    """One component under the name it has in the whole model."""

    def __init__(self, slot: str, component: nn.Module) -> None:
        super().__init__()
        self.add_module(slot, component)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: <pad> <bos> <eos> <image> w4 w5 ... w39."""
    special = ["<pad>", "<bos>", "<eos>", "<image>"]
    words = {word: id_ for id_, word in enumerate([*special, *(f"w{k}" for k in range(4, VOCABULARY))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<bos> ' if loop.first }}{{ message['content'] + ' ' }}"
    "{{ 'w5' if message['role'] == 'user' else '<eos>' }} {% endfor %}"
)
"""A chat template in words of the tiny tokenizer."""


def tiny_talker() -> LoadedModel:
    """The tiny model with random weights, which writes on and on, each time something else."""
    llama = LLAMA | {"tie_word_embeddings": False, "initializer_range": 0.6}
    model, tokenizer = tiny_model(7, fusion="gated", llama=llama), tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return LoadedModel(model, tokenizer, make_processor(model.image_spec, tokenizer, "stretch"))


def experiment(
    tmp_path: Path,
    stage: str | dict[str, Any],
    view: str,
    optimizer: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    fusion: str | dict[str, Any] = "gated",
    trainable: dict[str, str] | None = None,
    lora: dict[str, Any] | None = None,
    seed: int = 0,
    projector: str | dict[str, Any] = "mlp",
) -> ExperimentConfig:
    """A checked experiment over the tiny model, its tokenizer saved in `tmp_path`; the data is named, never drawn."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = {"tokenizer": str(tmp_path / "tokenizer")}
    slots = {
        "stage": stage,
        "encoder": {"name": "florence2", **dataclasses.asdict(encoder_config(**tokenizer, **(encoder or {})))},
        "fusion": fusion,
        "projector": projector,
        "language_model": {
            "name": "causal", **dataclasses.asdict(CausalLanguageModel.Config(model=LLAMA, **tokenizer))
        },
        "data": {"name": "demo", **dataclasses.asdict(DemoData.Config(root=str(tmp_path / "demo"), view=view))},
    }
    return ExperimentConfig(
        **{slot: choose(slot, entry) for slot, entry in slots.items()},
        normalize=NormalizeConfig(sources=True, output=True),
        trainable=trainable or {},
        lora=None if lora is None else LoraConfig(**lora),
        optimizer=OptimizerConfig(**(optimizer or {})),
        trainer=TrainerConfig(**{"accelerator": "cpu"} | (trainer or {})),
        seed=seed,
    )


def pixels(images: int, seed: int = 0, size: int = PIXELS) -> Tensor:
    """Seeded noise as images [I, 3, P, P]."""
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rows(count: int, seed: int = 0, length: int = 14, position: int = 0) -> Batch:
    """`count` rows of one image and words each; row k has k % 3 words fewer, and pads for them."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(4, VOCABULARY, (count, length), generator=generator)
    labels = torch.full_like(token_ids, IGNORE_INDEX)
    token_ids[:, 0], token_ids[:, 1 : 1 + TOKENS] = BOS, IMAGE
    for row in range(count):
        end = length - row % 3
        labels[row, TOKENS + 3 : end] = token_ids[row, TOKENS + 3 : end]
        token_ids[row, end:] = PAD
    return Batch(token_ids, labels, pixels(count, seed), None, tuple(f"k{k}" for k in range(count)), position)


def prompted(count: int, seed: int = 0, length: int = 5, position: int = 0) -> PromptedBatch:
    """`count` images with a target per prompt; targets end with EOS, some a token earlier."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, VOCABULARY, (count, len(PROMPT_IDS), length), generator=generator)
    targets[:, :, -1] = EOS
    targets[1::2, 1, -2], targets[1::2, 1, -1] = EOS, IGNORE_INDEX
    return PromptedBatch(pixels(count, seed), targets, tuple(f"k{k}" for k in range(count)), position)


def micro_batches(batch: Any, parts: int) -> list[Any]:
    """The batch cut into `parts` equal ones of its own type, in order."""
    size = len(batch.keys) // parts
    cut = [slice(part * size, (part + 1) * size) for part in range(parts)]
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return [
        dataclasses.replace(batch, keys=batch.keys[s], **{name: value[s] for name, value in tensors.items()})
        for s in cut
    ]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, those that a state_dict leaves out too."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(module)}


def named_tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers by qualified name, tied ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
