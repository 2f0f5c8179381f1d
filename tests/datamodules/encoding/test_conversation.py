"""The mask over an answer is exact for every kind of chat template and tokenizer, or the conversation is refused."""

import pickle
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import check_messages, image_parts
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX
from tests.datamodules.encoding.templates import FAMILIES, NAMES, QWEN, dressed, metaspace, tokenizer_of, written

Messages = list[dict[str, Any]]


@lru_cache(maxsize=16)
def encoder_of(name: str, tokens_per_image: int = 3) -> ConversationEncoder:
    return encoder_for(tokenizer_of(name), tokens_per_image)


def encoder_for(tokenizer: Any, tokens_per_image: int = 3) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), tokens_per_image)


def said(role: str, *words: str) -> dict[str, Any]:
    parts = [{"type": "image"} if word == "IMAGE" else {"type": "text", "text": word} for word in words]
    return {"role": role, "content": parts}


def user(*words: str) -> dict[str, Any]:
    return said("user", *words)


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def conversation(name: str) -> Messages:
    """Several turns, with images in the first, in a later and, where there is one, in the system's message."""
    system = [said("system", "be brief", "IMAGE")] if FAMILIES[name].system else []
    first = [user("IMAGE", "what colour", "IMAGE", "is it?"), assistant("the red one")]
    return [*system, *first, user("how many? ü", "IMAGE"), assistant("two,\n\nof 🙂"), user("and?"), assistant("no")]


def spelt(messages: Messages, image: str = "<image>") -> Messages:
    """The messages as the template is given them: as text."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else "".join(image if part["type"] == "image" else part["text"] for part in message["content"]),
        }
        for message in messages
    ]


def own_ids(name: str, messages: Messages, generate: bool = False) -> list[int]:
    """What transformers makes of the messages by itself."""
    tokenizer = tokenizer_of(name)
    encoded = tokenizer.apply_chat_template(
        spelt(messages), tokenize=True, add_generation_prompt=generate, return_dict=True
    )
    return list(encoded["input_ids"])


def answers_of(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def supervised_text(tokenizer: Any, labels: list[int]) -> str:
    return written(tokenizer, [label for label in labels if label != IGNORE_INDEX])


def spoken(name: str, messages: Messages) -> str:
    """What is to be supervised; blanks that a special token takes are in no token."""
    taken = r"^[^\S\x1c-\x1f]+" if FAMILIES[name].rstrip else "^(?!)"  # four of Python's blanks are none to engines
    return "".join(FAMILIES[name].spoken(re.sub(taken, "", answer)) for answer in answers_of(messages))


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_answers_and_their_ends_are_supervised(name: str) -> None:
    messages = conversation(name)
    ids, labels = encoder_of(name).encode(messages)
    assert supervised_text(tokenizer_of(name), labels) == spoken(name, messages)
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(ids, labels, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_ids_are_those_of_the_tokenizers_own_template(name: str) -> None:
    messages, encoder = conversation(name), encoder_of(name, tokens_per_image=1)
    assert encoder.encode(messages)[0] == own_ids(name, messages)
    assert encoder.prompt(messages[:-1]) == own_ids(name, messages[:-1], generate=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_where_the_training_sequence_goes_on_with_the_answer(name: str) -> None:
    messages, encoder = conversation(name), encoder_of(name)
    encoded = encoder.encode_turns(messages)
    prompt = encoder.prompt(messages[:-1])
    assert encoded.ids[: len(prompt)] == prompt
    assert set(encoded.labels[encoded.turn_ends[-2] : len(prompt)]) == {IGNORE_INDEX}
    assert IGNORE_INDEX not in encoded.labels[len(prompt) : encoded.turn_ends[-1]]


@pytest.mark.parametrize("name", NAMES)
def test_images_stand_where_their_parts_are(name: str) -> None:
    messages, encoder = conversation(name), encoder_of(name, tokens_per_image=5)
    ids, labels = encoder.encode(messages)
    assert ids.count(encoder.image_token_id) == 5 * image_parts(messages)
    assert all(label == IGNORE_INDEX for i, label in zip(ids, labels, strict=True) if i == encoder.image_token_id)
    single = encoder_of(name, tokens_per_image=1).encode(messages)[0]
    assert ids == [i for one in single for i in [one] * (5 if one == encoder.image_token_id else 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_cut_behind_an_answer_is_that_of_the_turns_before(name: str) -> None:
    messages, encoder = conversation(name), encoder_of(name)
    whole = encoder.encode_turns(messages)
    assert (whole.ids, whole.labels) == encoder.encode(messages)
    ends = [number + 1 for number, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(ends) == len(whole.turn_ends) == len(whole.images_before) == 3
    for k, (end, tokens) in enumerate(zip(ends, whole.turn_ends, strict=True)):
        kept = encoder.encode_turns(messages[:end])
        assert kept.turn_ends == whole.turn_ends[: k + 1]
        assert kept.images_before == whole.images_before[: k + 1]
        assert kept.images_before[-1] == image_parts(messages[:end])
        assert kept.ids[:tokens] == whole.ids[:tokens]
        assert kept.labels[:tokens] == whole.labels[:tokens]
        assert set(kept.labels[tokens:]) <= {IGNORE_INDEX}
        assert written(tokenizer_of(name), kept.ids[tokens:]) == FAMILIES[name].after


TEXT = st.text(
    st.sampled_from("ab é🙂\n\t.,1?◊/:]|\u00a0\u3000") | st.characters(exclude_categories=["Cs"]), max_size=8
)
PLAIN = TEXT.map(lambda text: "".join(c for c in text if c not in "<▁\ufdd0"))
"""Without what could look like a special token, what Llama 2 writes for a blank, and what no text may hold."""
LOOK_ALIKES = sorted(
    {text for family in FAMILIES.values() for text in family.special} | {"<image>", "<|im", "_start|>"}
)
TRICKY = st.lists(st.sampled_from(LOOK_ALIKES) | PLAIN, max_size=4).map("".join)


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[Messages]:
    """[system,] then turns of a question, with an image or two or none, and an answer."""
    parts = st.lists(text | st.just("IMAGE"), max_size=3)
    turns = st.lists(st.tuples(parts.map(lambda words: user(*words)), text.map(assistant)), min_size=1, max_size=3)
    system = st.none() | text.map(lambda words: said("system", words)) | st.just(said("system", "see", "IMAGE"))
    return st.builds(
        lambda first, rest: [*([] if first is None else [first]), *(message for turn in rest for message in turn)],
        system,
        turns,
    )


def without_unknown_roles(name: str, messages: Messages) -> Messages:
    return [message for message in messages if FAMILIES[name].system or message["role"] != "system"]


def same(one: str, other: str) -> bool:
    """Equal to the tokenizer, which may compose characters."""
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(messages=conversations(PLAIN))
def test_any_conversation_is_as_transformers_encodes_it_and_masked_exactly(name: str, messages: Messages) -> None:
    """Blanks and line breaks at the ends, characters of several tokens, nothing at all: never a wrong mask."""
    messages = without_unknown_roles(name, messages)
    encoder = encoder_of(name, tokens_per_image=1)
    ids, labels = encoder.encode(messages)
    if not any(answer[:1].isspace() for answer in answers_of(messages)):
        assert ids == own_ids(name, messages)
        assert encoder.prompt(messages[:-1]) == own_ids(name, messages[:-1], generate=True)
    assert same(supervised_text(tokenizer_of(name), labels), spoken(name, messages))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(messages=conversations(TRICKY))
def test_what_looks_like_control_in_a_content_is_text(name: str, messages: Messages) -> None:
    """As many special tokens as the same turns have with harmless words, and the same words to read."""
    messages = without_unknown_roles(name, messages)
    encoder, tokenizer = encoder_of(name, tokens_per_image=1), tokenizer_of(name)
    ids, labels = encoder.encode(messages)
    harmless = [
        {**message, "content": "x" if message["content"] else ""}
        if isinstance(message["content"], str)
        else said(
            message["role"], *("IMAGE" if p["type"] == "image" else "x" * bool(p["text"]) for p in message["content"])
        )
        for message in messages
    ]
    special = set(tokenizer.all_special_ids) | set(encoder._aliased.aliases)
    expected = Counter(i for i in own_ids(name, harmless) if i in special)
    assert Counter(i for i in ids if i in special) == expected
    assert same(supervised_text(tokenizer, labels), spoken(name, messages))
    if FAMILIES[name].engine == "bytes":  # others put blanks in that the text has not
        assert same(tokenizer.decode(ids), tokenizer.apply_chat_template(spelt(messages), tokenize=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_look_alike_has_the_tokens_its_letters_have(name: str) -> None:
    end, tokenizer = FAMILIES[name].end.strip(), tokenizer_of(name)
    encoder = encoder_of(name)
    ids, labels = encoder.encode([user(f"a{end}b<image>"), assistant(f"c {end} d")])
    assert encoder.image_token_id not in ids
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert labels.count(end_id) == 1
    assert supervised_text(tokenizer, labels) == FAMILIES[name].spoken(f"c {end} d")
    prompt = encoder.prompt([user(f"a{end}b")])
    assert prompt.count(end_id) == encoder.prompt([user("ab")]).count(end_id)
    caption, _ = encoder.caption(f"red{end}")
    assert caption.count(end_id) == int(end == FAMILIES[name].eos)


def test_what_a_template_trims_is_trimmed() -> None:
    ids, labels = encoder_of("llama_3").encode([user(" q\n"), assistant(" \nred\t ")])
    assert supervised_text(tokenizer_of("llama_3"), labels) == "red<|eot_id|>"
    assert ids == encoder_of("llama_3").encode([user("q"), assistant("red")])[0]


def test_what_a_template_keeps_is_kept() -> None:
    _, labels = encoder_of("qwen").encode([user("q"), assistant("  red \n")])
    assert supervised_text(tokenizer_of("qwen"), labels) == "  red \n<|im_end|>"


@pytest.mark.parametrize(("method", "kept"), [("lstrip", "red "), ("rstrip", " red"), ("strip", "red")])
def test_a_template_may_trim_one_side(method: str, kept: str) -> None:
    encoder = altered(QWEN.replace("message['content']", f"message['content'].{method}()"))
    _, labels = encoder.encode([user(" q "), assistant(" red ")])
    assert supervised_text(tokenizer_of("qwen"), labels) == f"{kept}<|im_end|>"


def test_of_special_tokens_that_begin_alike_the_longest_is_meant() -> None:
    backend = Tokenizer.from_str(tokenizer_of("qwen").backend_tokenizer.to_str())
    backend.add_special_tokens(["<|im_end|>>", "<|im_end|"])
    tokenizer = dressed(backend, QWEN.replace("<|im_end|>", "<|im_end|>>"))
    messages = [user("q <|im_end|>"), assistant("red")]
    ids, labels = encoder_for(tokenizer).encode(messages)
    assert supervised_text(tokenizer, labels) == "red<|im_end|>>"
    assert tokenizer.convert_ids_to_tokens([i for i in labels if i != IGNORE_INDEX])[-1] == "<|im_end|>>"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(spelt(messages), tokenize=False)


def test_a_blank_of_the_template_in_the_first_token_of_an_answer_is_the_assistants() -> None:
    """ "ASSISTANT:" invites, " red" answers; the model must write the blank, which is in the token of "red"."""
    tokenizer = tokenizer_of("vicuna")
    _, labels = encoder_of("vicuna").encode([user("what?"), assistant("red")])
    tokens = tokenizer.convert_ids_to_tokens([label for label in labels if label != IGNORE_INDEX])
    assert tokens == ["▁red", "</s>"]


def test_an_empty_system_message_may_be_passed_over() -> None:
    encoder, turn = encoder_of("phi_3_5"), [user("q"), assistant("a")]
    assert encoder.encode([said("system", ""), *turn]) == encoder.encode(turn)
    assert encoder.encode([said("system", " "), *turn]) != encoder.encode(turn)


def test_blanks_may_be_trimmed_with_the_templates_own() -> None:
    """Llama 2 puts the system's words into the first question, then trims that."""
    messages = [said("system", "be brief"), user(" \n"), assistant("red")]
    assert encoder_of("llama_2").encode(messages)[0] == own_ids("llama_2", messages)


@pytest.mark.parametrize("answer", ["\nred", " \n\n red\n", "\n", "\t\u3000red "])
@pytest.mark.parametrize("name", NAMES)
def test_blanks_at_the_ends_of_an_answer_are_masked_exactly(name: str, answer: str) -> None:
    """The tokens in front of an answer are those of its prompt, however it begins; in the turns before it too."""
    encoder, tokenizer = encoder_of(name), tokenizer_of(name)
    messages = [user("q"), assistant(answer), user("q"), assistant(answer)]
    encoded = encoder.encode_turns(messages)
    for number, stop in zip((1, 3), encoded.turn_ends, strict=True):
        prompt = encoder.prompt(messages[:number])
        assert encoded.ids[: len(prompt)] == prompt
        taught = encoded.labels[len(prompt) : stop]
        assert IGNORE_INDEX not in taught
        told = written(tokenizer, taught)
        assert told == spoken(name, messages[number : number + 1])
    assert sum(label != IGNORE_INDEX for label in encoded.labels) == sum(
        stop - len(encoder.prompt(messages[:number])) for number, stop in zip((1, 3), encoded.turn_ends, strict=True)
    )


def test_of_an_end_token_that_takes_blanks_the_answer_goes_without() -> None:
    backend = Tokenizer.from_str(tokenizer_of("qwen").backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<end>", lstrip=True, normalized=False, special=True)])
    encoder = encoder_for(dressed(backend, QWEN.replace("<|im_end|>", "<end>")))
    assert encoder.encode([user("q"), assistant("red ")]) == encoder.encode([user("q"), assistant("red")])
    ids, labels = encoder.encode([user("q"), assistant(" ")])
    assert ids[: len(encoder.prompt([user("q")]))] == encoder.prompt([user("q")])
    assert [label for label in labels if label != IGNORE_INDEX] == [encoder.tokenizer.convert_tokens_to_ids("<end>")]


@pytest.mark.parametrize("invitation", ["assistant: ", "assistant:"])
def test_no_token_is_of_template_and_half_a_character(invitation: str) -> None:
    """A blank and the first byte of "é" are one token here. It is the answer's where the template does not invite."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=257, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([" é", " è", " ê", " ë"], trainer)
    assert len(backend.encode(" é").tokens) == 2
    backend.add_special_tokens(["<|im_end|>", "<image>"])
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    invited = template + "{% if add_generation_prompt %}" + invitation + "{% endif %}"
    for used, lead in ((invited, " " if invitation.endswith(":") else ""), (template, " ")):
        tokenizer = dressed(backend, used, eos_token="<|im_end|>")
        encoder = encoder_for(tokenizer)
        prompt = encoder.prompt([user("q")])
        for answer in ("e é", "é"):
            ids, labels = encoder.encode([user("q"), assistant(answer)])
            assert ids[: len(prompt)] == prompt
            assert labels == [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]
            assert tokenizer.decode(ids[len(prompt) :]) == f"{lead}{answer}<|im_end|>"


def test_ten_thousand_turns_are_one_pass() -> None:
    turns = 10_000
    messages = [message for turn in range(turns) for message in (user("IMAGE", f"q{turn}</s>"), assistant(f"a{turn}"))]
    for name in ("llama_3", "vicuna"):
        encoded = encoder_of(name).encode_turns(messages)
        assert encoded.images_before == list(range(1, turns + 1))
        assert supervised_text(tokenizer_of(name), encoded.labels) == spoken(name, messages)


def test_an_encoder_keeps_nothing_of_what_it_encoded_and_travels() -> None:
    encoder = encoder_for(tokenizer_of("vicuna"))
    encoder.check_template()
    size = len(pickle.dumps(encoder))
    for turns in range(1, 20):
        encoder.encode([user("q</s>"), assistant("a")] * turns)
    assert len(pickle.dumps(encoder)) == size
    messages = conversation("vicuna")
    assert pickle.loads(pickle.dumps(encoder)).encode(messages) == encoder.encode(messages)


@pytest.mark.parametrize(
    ("text", "sentence"), [("a\ufdd02\ufdd1", "holds U\\+FDD0, which is no character"), ("a\ud800", "half a character")]
)
def test_texts_that_no_tokenizer_can_take_are_refused(text: str, sentence: str) -> None:
    for messages in ([user(text), assistant("c")], [user("a"), assistant(text)]):
        with pytest.raises(DataError, match=sentence):
            encoder_of("llama_3").encode(messages)
    with pytest.raises(DataError, match=sentence):
        encoder_of("llama_3").caption(text)


def test_a_look_alike_that_is_a_word_of_the_vocabulary_is_refused() -> None:
    """Whole words have ids of their own here, the special ones among them."""
    words = ["<unk>", "<end>", "<image>", "q", "a"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(words[:3])
    template = "{% for m in messages %}{{ m['content'] }} <end>{% endfor %}"
    encoder = encoder_for(dressed(backend, template, unk_token="<unk>", eos_token="<end>"))
    assert encoder.encode([user("q what"), assistant("a a")])[0] == [3, 0, 1, 4, 4, 1]
    for messages in ([user("q <end>"), assistant("a")], [user("q"), assistant("a <image> a")]):
        with pytest.raises(DataError, match=r"the text contains '<.*>', which this tokenizer cannot encode"):
            encoder.encode(messages)


def test_special_tokens_that_are_not_found_behind_a_word_are_told() -> None:
    """Normalised, the end token is looked for with a blank in front, as tokenizers of the first Llamas had it."""
    backend = metaspace("legacy")
    backend.add_special_tokens([AddedToken(text, normalized=True, special=True) for text in ("<s>", "</s>", "<image>")])
    tokenizer = dressed(backend, FAMILIES["vicuna"].template, bos_token="<s>", eos_token="</s>")
    with pytest.raises(ConfigError, match="does not recognise its special tokens after other text"):
        encoder_for(tokenizer).check_template()


def test_a_vocabulary_with_gaps_is_told() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 3}, unk_token="<unk>"))
    backend.add_special_tokens(["<image>"])
    with pytest.raises(ConfigError, match="ids have gaps"):
        encoder_for(dressed(backend, None))


def test_images_in_answers_are_refused() -> None:
    answer = {"role": "assistant", "content": [{"type": "image"}]}
    with pytest.raises(DataError, match="an answer contains an image"):
        encoder_of("qwen").encode([user("q"), answer])


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
    return encoder_for(dressed(tokenizer_of("qwen").backend_tokenizer, template, eos_token="<|im_end|>"))


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "ends an answer without a special token"),
        ("{{ messages[0]['content'] }}<|im_end|>", "leaves out, repeats or reorders contents"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}<|im_end|>{% endfor %}", "repeats"),
        ("{% for m in messages[::-1] %}{{ m['content'] }}<|im_end|>{% endfor %}", "reorders"),
        ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", "rewrites a content"),
    ],
)
def test_templates_that_cannot_be_masked_are_told(template: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        altered(template).check_template()


def test_a_template_that_refuses_roles() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + QWEN
    encoder = altered(template)
    encoder.check_template()
    with pytest.raises(DataError, match="refuses the roles system, user, assistant: no system here"):
        encoder.encode([said("system", "x"), user("a"), assistant("b")])


def test_a_content_that_a_template_rewrites_is_refused() -> None:
    """As templates do that drop an answer's thoughts."""
    encoder = altered(QWEN.replace("message['content']", "message['content'].split('</think>')[-1]"))
    _, labels = encoder.encode([user("q"), assistant("red")])
    assert supervised_text(tokenizer_of("qwen"), labels) == "red<|im_end|>"
    with pytest.raises(DataError, match="rewrites a content"):
        encoder.encode([user("q"), assistant("hm</think>red")])


def test_answers_that_end_in_different_ways_are_refused() -> None:
    template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{{ '<|im_end|>' if loop.last or m['role'] == 'user' else '<|endoftext|>' }}{% endfor %}"
    )
    encoder = altered(template)
    encoder.check_template()
    with pytest.raises(DataError, match="inconsistent end-of-turn tokens"):
        encoder.encode([user("q"), assistant("a"), user("q"), assistant("a")])


def test_an_image_token_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="the image token 5 is not a special token"):
        ConversationEncoder(tokenizer_of("qwen"), 5, 3)


def test_padding_and_cutting_set_by_an_earlier_call_do_not_matter() -> None:
    tokenizer = tokenizer_of("phi_3")
    messages = [user("what colour is the circle?"), assistant("red")]
    before = encoder_of("phi_3").encode(messages)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    try:
        assert encoder_for(tokenizer).encode(messages) == before
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
