"""How data asks is found in it, and messages are brought to that form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.encoding.question_form import Asking, Habits, look_at_asking
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
    found = Habits.of([talk(asked)]).asking()
    assert found == Asking(behind, between)
    (message,) = found.asked([{"role": "user", "content": [IMAGE, IMAGE, text("What?")]}])
    spelt = "".join(part.get("text", "<image>") for part in message["content"])
    assert spelt == f"<image>{between}<image>{behind}What?"
    assert found.asked(talk(asked)) == talk(asked), "what the data has is not joined twice"


def test_messages_that_need_nothing_stay_as_they_are() -> None:
    asking = Asking("\n", "\n")
    for content in ("What?", [text("What?"), IMAGE], [IMAGE, text("\nWhat?")], [IMAGE, text(" ")], [IMAGE]):
        messages = [{"role": "user", "content": content}]
        assert asking.asked(messages) == messages


def test_the_systems_message_is_given_where_all_of_training_has_it() -> None:
    same = Habits.of([talk("a?", "Be brief."), talk("b?", "Be brief.")])
    asking = same.asking()
    assert asking.system == "Be brief."
    assert same.uneven() == []
    turn = [{"role": "user", "content": "What?"}]
    assert asking.asked(turn) == [{"role": "system", "content": "Be brief."}, *turn]
    own = [{"role": "system", "content": "Be rude."}, *turn]
    assert asking.asked(own) == own
    mixed = Habits.of([talk("a?", "Be brief."), talk("b?"), talk("c?", "Be kind.")])
    assert mixed.asking().system == ""
    (sentence,) = mixed.uneven()
    assert sentence.startswith("2 of 3 conversations begin with a message of the system, 2 different ones")


def test_conversations_that_ask_in_several_ways_are_told() -> None:
    habits = Habits.of([talk("<image>\nWhat?")] * 8 + [talk("<image>What?")] * 2)
    assert habits.asking().behind_image == "\n"
    (sentence,) = habits.uneven()
    assert sentence.startswith("'\\n' (8), '' (2) between an image and the words behind it: the model is asked with")
    assert Habits.of([talk("<image>\nWhat?")] * 99 + [talk("<image>What?")]).uneven() == []
    (sentence,) = Habits.of([talk("What?\n<image>")] * 3 + [talk("<image>\nWhat?")]).uneven()
    assert sentence.startswith("images stand behind the words in 3 messages, before them in 1")


def test_a_mixture_asks_as_most_of_it_and_tells_the_rest(tmp_path: Path, write_talks: Callable[..., None]) -> None:
    for name, asked in (("llava", "<image>\nWhat?"), ("other", "<image>What?")):
        for split in ("train", "validation"):
            write_talks(tmp_path / name, split, [talk(asked)] * 3)

    def found(**sets: Any) -> tuple[Asking, list[str]]:
        config = ShardsData.Config(
            datasets={name: DatasetConfig(root=str(tmp_path / name), **fields) for name, fields in sets.items()}
        )
        return look_at_asking(ShardsData(config))

    assert found(llava={}) == (Asking("\n", "\n"), [])
    assert found(other={}) == (Asking(), [])
    for shares, behind, named in (((2, 1), "\n", "other"), ((1, 2), "", "llava")):
        asking, (sentence,) = found(llava={"share": shares[0]}, other={"share": shares[1]})
        assert asking == Asking(behind, behind)
        assert sentence.startswith(f"data {named}: ")
    assert found(llava={"view": "caption"}) == (Asking(captions=True), [])
    assert found(llava={"view": "caption"}, other={"view": "conversation"}) == (Asking(), [])
