"""A model is asked with the tokens that training has in front of an answer, whatever the chat template does."""

import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as rendering
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.encoding.conversation import ConversationEncoder
from fvl_lightning.core.chat_date import dated, dated_tokenizer
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX
from tests.datamodules.encoding.templates import ALL_FAMILIES, DATED, QWEN, QWEN_3, dressed, tokenizer_of, written

Messages = list[dict[str, Any]]
IMAGE = {"type": "image"}
NAMES = sorted(ALL_FAMILIES)


def made(name: str, template: str | None = None) -> ConversationEncoder:
    tokenizer = tokenizer_of(name)
    if template is not None:
        tokenizer = dressed(tokenizer.backend_tokenizer, template, eos_token=tokenizer.eos_token)
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2)


def user(*parts: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts],
    }


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TEXT = st.text(st.sampled_from("ab 1\n\té?"), max_size=5)
TURN = st.tuples(st.lists(TEXT | st.just(IMAGE), max_size=3).map(lambda parts: user(*parts)), TEXT.map(assistant))


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    """[system,] then turns; texts may be empty, and begin and end with blanks."""
    system = draw(st.none() | TEXT)
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *(message for turn in draw(st.lists(TURN, min_size=1, max_size=3)) for message in turn)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(messages=conversations())
def test_training_has_the_prompt_of_every_answer_in_front_of_it(name: str, messages: Messages) -> None:
    family, encoder = ALL_FAMILIES[name], made(name)
    if not family.system:
        messages = [message for message in messages if message["role"] != "system"]
    if name == "qwen_3":  # of several turns only the last would be written as it is asked for
        messages = [message for message in messages if message["role"] == "system"] + messages[-2:]
    places = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    encoded = encoder.encode_turns(messages)
    supervised = 0
    for place, stop in zip(places, encoded.turn_ends, strict=True):
        prompt = encoder.prompt(messages[:place])
        assert encoded.ids[: len(prompt)] == prompt
        assert encoded.labels[len(prompt) : stop] == encoded.ids[len(prompt) : stop]
        assert encoder.encode(messages[: place + 1])[0][:stop] == encoded.ids[:stop]
        supervised += stop - len(prompt)
    assert supervised == sum(label != IGNORE_INDEX for label in encoded.labels)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("qwen_3", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("r_1", "<|begin|><|User|>q<|Assistant|>"),
        ("silent", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        ("eager", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        ("gemma", "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n"),
        ("vicuna", "<s>A chat between a curious user and an assistant. USER: q ASSISTANT:"),
    ],
)
def test_what_stands_in_front_of_an_answer_is_asked_with(name: str, asked: str) -> None:
    encoder, turn = made(name), [user("q"), assistant("red")]
    assert encoder.written(turn[:1], generate=True) == asked
    ids, labels = encoder.encode(turn)
    prompt = encoder.prompt(turn[:1])
    assert labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
    taught = [label for label in labels if label != IGNORE_INDEX]
    assert ids[: len(prompt) + len(taught)] == prompt + taught
    assert written(encoder.tokenizer, taught) == ALL_FAMILIES[name].spoken("red")
    begun = encoder.prompt(turn, go_on=True)
    assert encoder.written(turn, go_on=True) == asked + ALL_FAMILIES[name].lead + "red"
    assert ids[: len(begun)] == begun


def test_an_answer_that_changes_once_others_follow_is_refused() -> None:
    encoder = made("qwen_3")
    turns = [user("q"), assistant("a"), user("q"), assistant("b")]
    for messages in (turns, turns[:3]):
        with pytest.raises(DataError, match="writes an answer differently once messages follow"):
            encoder.encode(messages)
    assert encoder.prompt(turns[:3])  # asking on is another matter
    always = made("qwen_3", QWEN_3.replace("and loop.index0 > last.user", ""))
    assert always.encode_turns(turns).turn_ends == [always.encode_turns(turns[: 2 * k]).turn_ends[-1] for k in (1, 2)]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("qwen", None),
        ("vicuna", None),
        ("llama_2", None),
        ("eager", None),
        ("qwen_3", ("", "<think>\n\n</think>\n\n")),
        ("r_1", ("<think>\n", "")),
        ("silent", ("", "<|im_start|>assistant\n")),
    ],
)
def test_an_invitation_that_training_does_not_show_is_told(name: str, other: tuple[str, str] | None) -> None:
    assert made(name).template.other_generation_prompt() == other


def test_a_template_without_answers_asks_as_it_does_by_itself() -> None:
    encoder = made("qwen", "{{ messages[0]['content'] }}{% if add_generation_prompt %} A:{% endif %}")
    assert encoder.written([user("q")], generate=True) == "q A:"


class Later(datetime.datetime):
    """A clock on another day."""

    @classmethod
    def now(cls, tz: Any = None) -> "Later":
        return cls(2031, 2, 3, 4, 5, 6)


def test_a_template_that_asks_for_the_date_is_the_same_on_any_day(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, turn = made("dated"), [{"role": "user", "content": "q"}, assistant("a")]
    before, own = encoder.encode(turn), encoder.tokenizer.apply_chat_template(turn, tokenize=False)
    assert "Today: 26 July 2024<" in encoder.written(turn)
    monkeypatch.setattr(rendering, "datetime", Later)
    assert encoder.tokenizer.apply_chat_template(turn, tokenize=False) != own, "the clock is not the template's"
    assert encoder.encode(turn) == before
    other = made("dated", dated(DATED, "2026-05-01"))
    assert "Today: 01 May 2026<" in other.written(turn)
    assert other.tokenizer.apply_chat_template(turn, tokenize=False) == other.written(turn), "the day is in the text"


@pytest.mark.parametrize("written_as", ["%d %B %Y", "%Y-%m-%d", "%-d %b %y", "%A, %j", "%H:%M:%S", "%d/%m/%Y"])
@pytest.mark.parametrize("lead", ["", "\n", "  {% if true %}x{% endif %}\n\n"])
def test_a_day_is_written_as_a_clock_would(monkeypatch: pytest.MonkeyPatch, written_as: str, lead: str) -> None:
    class Noon(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Noon":
            return cls(2026, 5, 1)

    template = (
        lead + "{% macro day() %}{{ strftime_now('" + written_as + "') }}{% endmacro %}"
        "{% if strftime_now is defined %}{{ day() }}{% endif %}" + QWEN
    )
    turn = [{"role": "user", "content": "q"}]
    monkeypatch.setattr(rendering, "datetime", Noon)
    clock = made("qwen", template).tokenizer.apply_chat_template(turn, tokenize=False)
    assert made("qwen", dated(template, "2026-05-01")).tokenizer.apply_chat_template(turn, tokenize=False) == clock


def test_templates_without_a_date_stay_as_they_are() -> None:
    assert dated(QWEN) == QWEN
    assert dated(dated(DATED)) == dated(DATED) != dated(DATED, "2026-05-01")


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = dressed(tokenizer_of("qwen").backend_tokenizer, None, eos_token="<|im_end|>")
    tokenizer.chat_template = {"default": DATED, "tool_use": QWEN}
    encoder = ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2)
    assert "Today: 26 July 2024<" in encoder.written([user("q")], generate=True)
    dated_tokenizer(tokenizer, "2026-05-01")
    assert "Today: 01 May 2026<" in encoder.written([user("q")], generate=True)
    tokenizer.chat_template = {"rag": DATED, "tool_use": QWEN}
    with pytest.raises(ConfigError, match=r"named chat templates \(rag, tool_use\), but none is called default"):
        encoder.prompt([user("q")])
