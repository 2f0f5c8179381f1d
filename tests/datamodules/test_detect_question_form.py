"""How data asks is found in it, and messages are brought to that form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.detect_question_form import QuestionCounts, detect_question_form
from datamodules.encoding.question_form import QuestionForm
from datamodules.shards import DatasetConfig, ShardsData
from datamodules.sources.records import from_conversations

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def talk(asked: str, system: str = "") -> list[dict[str, Any]]:
    """A conversation of LLaVA's."""
    turns = [("human", asked), ("gpt", "red"), ("human", "and?"), ("gpt", "blue")]
    return from_conversations(
        [{"from": who, "value": said} for who, said in [*([("system", system)] if system else []), *turns]]
    )


@pytest.mark.parametrize(
    ("asked", "behind", "between"),
    [
        ("<image>\nWhat?", "\n", "\n"),
        ("<image>What?", "", ""),
        ("<image> What?", " ", " "),
        ("<image>\n<image>\nWhat?", "\n", "\n"),
        ("<image><image>\nWhat?", "\n", ""),
        ("Look: <image>\n\nWhat?", "\n\n", "\n\n"),
        ("no picture?", "", ""),
    ],
)
def test_what_joins_images_and_words_is_found_and_used(asked: str, behind: str, between: str) -> None:
    found = QuestionCounts.of([talk(asked)]).form()
    assert found == QuestionForm(behind, between)
    (message,) = found.apply([{"role": "user", "content": [IMAGE, IMAGE, text("What?")]}])
    spelt = "".join(part.get("text", "<image>") for part in message["content"])
    assert spelt == f"<image>{between}<image>{behind}What?"
    assert found.apply(talk(asked)) == talk(asked), "what the data has is not joined twice"


def test_messages_that_need_nothing_stay_as_they_are() -> None:
    asking = QuestionForm("\n", "\n")
    for content in ("What?", [text("What?"), IMAGE], [IMAGE, text("\nWhat?")], [IMAGE, text(" ")], [IMAGE]):
        messages = [{"role": "user", "content": content}]
        assert asking.apply(messages) == messages


def test_the_systems_message_is_given_where_all_of_training_has_it() -> None:
    same = QuestionCounts.of([talk("a?", "Be brief."), talk("b?", "Be brief.")])
    asking = same.form()
    assert asking.system == "Be brief."
    assert same.differences() == []
    turn = [{"role": "user", "content": "What?"}]
    assert asking.apply(turn) == [{"role": "system", "content": "Be brief."}, *turn]
    own = [{"role": "system", "content": "Be rude."}, *turn]
    assert asking.apply(own) == own
    mixed = QuestionCounts.of([talk("a?", "Be brief."), talk("b?"), talk("c?", "Be kind.")])
    assert mixed.form().system == ""
    (sentence,) = mixed.differences()
    assert sentence.startswith("2 of 3 conversations begin with a system message, 2 different ones")


def test_conversations_that_ask_in_several_ways_are_told() -> None:
    habits = QuestionCounts.of([talk("<image>\nWhat?")] * 8 + [talk("<image>What?")] * 2)
    assert habits.form().behind_image == "\n"
    (sentence,) = habits.differences()
    assert sentence.startswith("'\\n' (8), '' (2) between an image and the text after it: prompts use")
    assert QuestionCounts.of([talk("<image>\nWhat?")] * 99 + [talk("<image>What?")]).differences() == []
    (sentence,) = QuestionCounts.of([talk("What?\n<image>")] * 3 + [talk("<image>\nWhat?")]).differences()
    assert sentence.startswith("images come after the text in 3 messages, before it in 1")


def test_a_mixture_asks_as_most_of_it_and_tells_the_rest(tmp_path: Path, write_talks: Callable[..., None]) -> None:
    for name, asked in (("llava", "<image>\nWhat?"), ("other", "<image>What?")):
        for split in ("train", "validation"):
            write_talks(tmp_path / name, split, [talk(asked)] * 3)

    def found(**sets: Any) -> tuple[QuestionForm, list[str]]:
        config = ShardsData.Config(
            datasets={name: DatasetConfig(root=str(tmp_path / name), **fields) for name, fields in sets.items()}
        )
        return detect_question_form(ShardsData(config))

    assert found(llava={}) == (QuestionForm("\n", "\n"), [])
    assert found(other={}) == (QuestionForm(), [])
    for shares, behind, named in (((2, 1), "\n", "other"), ((1, 2), "", "llava")):
        asking, (sentence,) = found(llava={"share": shares[0]}, other={"share": shares[1]})
        assert asking == QuestionForm(behind, behind)
        assert sentence.startswith(f"data {named}: ")
    assert found(llava={"view": "caption"}) == (QuestionForm(captions=True), [])
    assert found(llava={"view": "caption"}, other={"view": "conversation"}) == (QuestionForm(), [])
