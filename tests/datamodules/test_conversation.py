"""The mask over an answer is exact for every kind of chat template, or the conversation is refused."""

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.conversation import ConversationEncoder, check_messages, image_parts
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX

LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen cut a text before the merges: a blank goes with the word behind it, line breaks together."""

KINDS: dict[str, tuple[str, str, list[str]]] = {
    "llama_3": (LLAMA_3, "<|eot_id|>", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "chatml": (CHATML, "<|im_end|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "phi_3": (PHI_3, "<|end|>", ["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]),
}
NAMES = sorted(KINDS)


@lru_cache(maxsize=8)
def tokenizer_of(name: str) -> Any:
    """A tiny tokenizer with the template and the special tokens of a family; those of Phi 3 swallow blanks behind."""
    template, _, special = KINDS[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(["what colour is the circle? the red one, there are two\n\n"] * 3, trainer)
    backend.add_special_tokens([AddedToken(text, rstrip=name == "phi_3", special=True) for text in special])
    backend.add_special_tokens([AddedToken("<image>", special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], eos_token=KINDS[name][1], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def encoder_of(name: str, tokens_per_image: int = 3) -> ConversationEncoder:
    tokenizer = tokenizer_of(name)
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), tokens_per_image)


def user(*words: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image"} if word == "IMAGE" else {"type": "text", "text": word} for word in words],
    }


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def supervised_text(name: str, labels: list[int]) -> str:
    return str(tokenizer_of(name).decode([label for label in labels if label != IGNORE_INDEX]))


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_answers_and_their_ends_are_supervised(name: str) -> None:
    messages = [
        user("IMAGE", "what colour is the circle?"),
        assistant("red"),
        user("how many?"),
        assistant("two of it"),
    ]
    ids, labels = encoder_of(name).encode(messages)
    end = KINDS[name][1]
    assert supervised_text(name, labels) == f"red{end}two of it{end}"
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(ids, labels, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_ids_are_those_of_the_tokenizers_own_template(name: str) -> None:
    """Rendered by transformers with the image token spelt out, tokenised in one go."""
    tokenizer, image = tokenizer_of(name), "<image>" * 3
    messages = [{"role": "system", "content": "be brief"}, user("IMAGE", "what?"), assistant("the red one")]
    plain = [messages[0], {"role": "user", "content": f"{image}what?"}, messages[2]]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    assert encoder_of(name).encode(messages)[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
    text = tokenizer.apply_chat_template(plain[:2], tokenize=False, add_generation_prompt=True)
    assert encoder_of(name).prompt(messages[:2]) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_where_the_training_sequence_goes_on_with_the_answer(name: str) -> None:
    encoder = encoder_of(name)
    ids, labels = encoder.encode([user("IMAGE", "what colour is it?"), assistant("red")])
    prompt = encoder.prompt([user("IMAGE", "what colour is it?")])
    first = next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    assert ids[:first] == prompt


@pytest.mark.parametrize("name", NAMES)
def test_images_stand_where_their_parts_are(name: str) -> None:
    encoder = encoder_of(name, tokens_per_image=5)
    ids, labels = encoder.encode([user("IMAGE", "and", "IMAGE", "differ?"), assistant("yes")])
    places = [place for place, i in enumerate(ids) if i == encoder.image_token_id]
    assert len(places) == 10
    assert places[4] - places[0] == 4
    assert places[9] - places[5] == 4
    assert tokenizer_of(name).decode(ids[places[4] + 1 : places[5]]) == "and"
    assert all(labels[place] == IGNORE_INDEX for place in places)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(answers=st.lists(st.text(alphabet="ab é🙂\n.,1?◊", max_size=8), min_size=1, max_size=3))
def test_any_answer_is_masked_exactly_or_refused(name: str, answers: list[str]) -> None:
    """Blanks and line breaks at the ends, characters of several tokens, nothing at all: never a wrong mask."""
    messages = [message for answer in answers for message in (user("q"), assistant(answer))]
    try:
        _, labels = encoder_of(name).encode(messages)
    except DataError:
        assert any(answer != answer.strip() for answer in answers)  # only blanks can run into the template
        return
    end = KINDS[name][1]
    assert supervised_text(name, labels) == "".join(answer + end for answer in answers)


def test_blanks_at_the_ends_of_an_answer_are_no_obstacle() -> None:
    _, labels = encoder_of("llama_3").encode([user("q"), assistant(" red ")])
    assert supervised_text("llama_3", labels) == " red <|eot_id|>"


def test_an_answer_that_runs_into_the_template_is_refused() -> None:
    with pytest.raises(DataError, match="does not begin and end where tokens do"):
        encoder_of("chatml").encode([user("q"), assistant("\nred")])


def test_a_token_of_template_and_half_a_character_is_noticed() -> None:
    """A blank of the template and the first byte of "é" are one token here; the rest of "é" begins where "é" does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=257, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([" é", " è", " ê", " ë"], trainer)
    assert len(backend.encode(" é").tokens) == 2
    backend.add_special_tokens(["<|im_end|>", "<image>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    encoder = ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 3)
    _, labels = encoder.encode([user("q"), assistant("e é")])
    assert tokenizer.decode([label for label in labels if label != IGNORE_INDEX]) == "e é<|im_end|>"
    with pytest.raises(DataError, match="does not begin and end where tokens do"):
        encoder.encode([user("q"), assistant("é")])


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_a_content_are_refused(name: str) -> None:
    encoder, end = encoder_of(name), KINDS[name][1]
    for messages in ([user(f"a{end}b"), assistant("c")], [user("a"), assistant("c<image>")]):
        with pytest.raises(DataError, match=r"the text holds '<.*', a special token of the tokenizer"):
            encoder.encode(messages)
    with pytest.raises(DataError, match="special token"):
        encoder.prompt([user(end)])
    with pytest.raises(DataError, match="special token"):
        encoder.caption(f"red{end}")


def test_images_in_answers_are_refused() -> None:
    answer = {"role": "assistant", "content": [{"type": "image"}]}
    with pytest.raises(DataError, match="an answer holds an image"):
        encoder_of("chatml").encode([user("q"), answer])


def test_captions_are_plain() -> None:
    encoder, tokenizer = encoder_of("llama_3"), tokenizer_of("llama_3")
    ids, labels = encoder.caption("the red one")
    head = [tokenizer.bos_token_id, *[encoder.image_token_id] * 3]
    assert ids[:4] == head
    assert labels[:4] == [IGNORE_INDEX] * 4
    assert labels[4:] == ids[4:]
    assert tokenizer.decode(ids[4:]) == "the red one<|eot_id|>"
    assert len(encoder.caption("the red one", images=2)[0]) == len(ids) + 3


def altered(template: str | None) -> ConversationEncoder:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of("chatml").backend_tokenizer, eos_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 3)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "ends an answer without a special token"),
        ("{{ messages[0]['content'] }}<|im_end|>", "leaves out, repeats or reorders contents"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}<|im_end|>{% endfor %}", "repeats"),
        ("{% for m in messages[::-1] %}{{ m['content'] }}<|im_end|>{% endfor %}", "reorders"),
    ],
)
def test_templates_that_cannot_be_masked_are_told(template: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        altered(template).check_template()


def test_a_template_that_refuses_roles() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    encoder = altered(template)
    encoder.check_template()
    with pytest.raises(DataError, match="refuses the roles system, user, assistant: no system here"):
        encoder.encode([{"role": "system", "content": "x"}, user("a"), assistant("b")])


def test_an_image_token_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="the image token 5 is not a special token"):
        ConversationEncoder(tokenizer_of("chatml"), 5, 3)


def test_padding_and_cutting_set_by_an_earlier_call_do_not_matter() -> None:
    tokenizer = tokenizer_of("phi_3")
    messages = [user("what colour is the circle?"), assistant("red")]
    before = encoder_of("phi_3").encode(messages)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    try:
        assert encoder_of("phi_3").encode(messages) == before
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "no messages"),
        ([], "no messages"),
        ("text", "no messages"),
        (["text"], "message 0 has no role"),
        ([{"role": "robot", "content": "x"}], "message 0 has no role"),
        ([user("a"), {"role": "assistant"}], "message 1 has content that is neither"),
        ([{"role": "user", "content": [{"type": "video"}]}], "message 0 has content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0 has content"),
        ([user("a", "IMAGE"), assistant("b")], ""),
    ],
)
def test_messages_are_checked(messages: Any, problem: str) -> None:
    found = check_messages(messages)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_image_parts_are_counted() -> None:
    assert image_parts([user("IMAGE", "a", "IMAGE"), assistant("b"), user("IMAGE")]) == 3
