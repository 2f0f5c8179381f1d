"""Vicuna's conversation, as the preset writes it for a tokenizer without a template: the text, and the exact mask."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from datamodules.encoding.conversation import ConversationEncoder
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.language_models.causal import CausalLanguageModel, load_tokenizer
from tests.datamodules.encoding.templates import LLAMA_TOKENS, dressed, metaspace, written
from tests.experiments.presets import load

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nwhat colour is the circle?"}]},
    {"role": "assistant", "content": "the red one"},
    {"role": "user", "content": "are there USER: two</s>?"},
    {"role": "assistant", "content": "there are two\n\nASSISTANT: a"},
]
SPELT = [
    {"role": "user", "content": "<image>\nwhat colour is the circle?"},
    {"role": "assistant", "content": "the red one"},
    {"role": "user", "content": "how many?"},
    {"role": "assistant", "content": "two"},
]


@pytest.fixture(params=["legacy", "first"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A SentencePiece-like tokenizer of both schemes, saved without a template."""
    backend = metaspace(request.param)
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in LLAMA_TOKENS])
    backend.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    dressed(backend, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    """The tokenizer as the preset's language model has it."""
    template = load("llava15_7b/finetune").language_model.config.chat_template
    return load_tokenizer(CausalLanguageModel.Config(tokenizer=str(folder), chat_template=template))


def test_the_text_is_vicunas(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(SPELT, tokenize=False)
    first = f"<s>{SYSTEM} USER: <image>\nwhat colour is the circle? ASSISTANT: the red one</s>"
    assert text == first + "USER: how many? ASSISTANT: two</s>"
    invited = tokenizer.apply_chat_template(SPELT[:1], tokenize=False, add_generation_prompt=True)
    assert invited == first.removesuffix(" the red one</s>")


def test_a_system_message_takes_the_place_of_the_sentence(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *SPELT[2:]]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s>Be brief. USER: how many? ASSISTANT: two</s>"


def test_exactly_the_answers_and_their_ends_are_supervised(tokenizer: Any) -> None:
    encoder = ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 3)
    ids, labels = encoder.encode(TALK)
    assert ids.count(encoder.image_token_id) == 3
    supervised = [label for label in labels if label != IGNORE_INDEX]
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(ids, labels, strict=True))
    assert written(tokenizer, supervised) == " the red one</s> there are two\n\nASSISTANT: a</s>"
    assert supervised.count(tokenizer.eos_token_id) == 2
    prompt = encoder.prompt(TALK[:-1])
    assert ids[: len(prompt)] == prompt


def test_the_template_goes_with_the_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(CausalLanguageModel.Config(tokenizer=str(tmp_path / "saved")))
    assert again.chat_template == tokenizer.chat_template


def test_without_it_there_is_none(folder: Path) -> None:
    plain = load_tokenizer(CausalLanguageModel.Config(tokenizer=str(folder)))
    encoder = ConversationEncoder(plain, plain.convert_tokens_to_ids("<image>"), 3)
    with pytest.raises(ConfigError, match="has no chat template"):
        encoder.encode(TALK)
