"""Every way to prompt a model gives the tokens that precede an answer in training."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.detect_question_form import QuestionCounts
from datamodules.encoding.over_long import some_turns
from datamodules.sources.records import from_conversations
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.inference.conversation import Conversation
from fvl_lightning.inference.generation import Sampling, encode, user_message
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor, make_processor
from tests.datamodules.encoding.templates import ALL_FAMILIES, tokenizer_of

SPEC = ImageSpec(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 3)
PICTURE = np.zeros((4, 4, 3), dtype=np.uint8)
WORDS = st.text(st.sampled_from("ab é?\n"), min_size=1, max_size=5).filter(str.strip)
ASKED = {"tokenize": True, "return_dict": True, "return_tensors": None, "add_generation_prompt": True}


@st.composite
def trainings(draw: st.DrawFn) -> tuple[str, str, list[tuple[int, str, str]]]:
    """What joins images and words, the system's message or "", and turns: images, question, answer."""
    turns = st.tuples(st.integers(0, 2), WORDS.map(str.lstrip), WORDS)
    join = draw(st.sampled_from(["\n", "", " ", "\n\n"]))
    return join, draw(st.sampled_from(["", "Be brief."])), draw(st.lists(turns, min_size=1, max_size=3))


def rows(join: str, system: str, turns: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """The conversation as LLaVA's data has it."""
    said = [("system", system)] if system else []
    for images, question, answer in turns:
        said += [("human", f"<image>{join}" * images + question), ("gpt", answer)]
    return from_conversations([{"from": who, "value": text} for who, text in said])


def answering(processor: FlorenceVLProcessor) -> Any:
    """A model of which only the processor matters."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    return SimpleNamespace(processor=processor, model=SimpleNamespace(config=config))


@pytest.mark.parametrize("name", sorted(ALL_FAMILIES))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(training=trainings())
def test_plain_questions_are_read_as_those_of_training(name: str, training: tuple[str, str, Any]) -> None:
    join, system, turns = training
    system = system if ALL_FAMILIES[name].system else ""
    turns = turns[-1:] if name == "qwen_3" else turns  # which is refused with several
    talk = rows(join, system, turns)
    processor = make_processor(SPEC, tokenizer_of(name), "stretch", asking=QuestionCounts.of([talk]).form())
    encoded = processor.encoder.encode_turns(talk)
    places = [number for number, message in enumerate(talk) if message["role"] == "assistant"]
    history: list[dict[str, Any]] = []
    for place, stop, (images, question, answer) in zip(places, encoded.turn_ends, turns, strict=True):
        asked = [*history, user_message([PICTURE] * images, question)]
        prompt = encode(answering(processor), asked).ids
        assert prompt == encoded.ids[: len(prompt)] == processor.encoder.prompt(talk[:place])
        assert encoded.labels[len(prompt) : stop] == encoded.ids[len(prompt) : stop]
        assert processor.apply_chat_template(asked, **ASKED)["input_ids"][0] == prompt
        whole = [*asked, {"role": "assistant", "content": answer}]
        assert (
            processor.apply_chat_template(whole, **ASKED | {"add_generation_prompt": False})["input_ids"][0][:stop]
            == encoded.ids[:stop]
        )
        history = whole


@pytest.mark.parametrize("name", ["llama_3", "qwen", "vicuna", "r_1"])
def test_a_chat_goes_on_in_the_tokens_of_training(name: str) -> None:
    talk = rows("\n", "Be brief.", [(1, "what?", "red"), (0, "and?", "blue")])
    processor = make_processor(SPEC, tokenizer_of(name), "stretch", asking=QuestionCounts.of([talk]).form())
    chat = Conversation(answering(processor), Sampling())
    chat.pictures.append(PICTURE)
    chat.say("what?")
    chat.messages[-1] = {"role": "assistant", "content": "red"}
    prompt = encode(answering(processor), [*chat.messages, user_message([], "and?")]).ids
    assert prompt == processor.encoder.prompt(talk[:-1])


def test_a_piece_of_a_conversation_joins_its_images_as_the_whole_does() -> None:
    talk = rows("\n", "", [(2, "what?", "red"), (0, "and?", "blue")])
    alone = rows("\n", "", [(2, "and?", "blue")])
    encoder = make_processor(SPEC, tokenizer_of("qwen"), "stretch").encoder
    assert encoder.encode(some_turns(talk, 1, 2)) == encoder.encode(alone)


def test_how_training_asked_is_saved_with_the_processor(tmp_path: Any) -> None:
    talk = rows("\n", "Be brief.", [(1, "what?", "red")])
    made = make_processor(SPEC, tokenizer_of("dated"), "stretch", asking=QuestionCounts.of([talk]).form())
    made.save_pretrained(tmp_path)
    again = FlorenceVLProcessor.from_pretrained(tmp_path)
    plain = [user_message([PICTURE], "what?")]
    ids = again.apply_chat_template(plain, **ASKED)["input_ids"]
    assert ids == made.apply_chat_template(plain, **ASKED)["input_ids"]
    assert ids[0] == made.encoder.prompt(talk[:-1])
    assert again.asking == made.asking
