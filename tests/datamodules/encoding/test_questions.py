"""Answers with a kind become questions of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.encoding.question_form import QuestionForm
from datamodules.encoding.questions import list_questions
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore

Write = Callable[..., Path]
Bytes = Callable[..., bytes]

SYSTEM = {"role": "system", "content": "be brief"}


def record(kinds: Any) -> dict[str, Any]:
    first = [
        {"type": "image"},
        {"type": "text", "text": "what "},
        {"type": "image"},
        {"type": "text", "text": "differs?"},
    ]
    return {
        "messages": [
            SYSTEM,
            {"role": "user", "content": first},
            {"role": "assistant", "content": "the colour"},
            {"role": "user", "content": "how?"},
            {"role": "assistant", "content": [{"type": "text", "text": "red, not blue"}]},
        ],
        "kinds": kinds,
    }


def test_each_answer_is_asked_for_with_all_images_and_no_other_turn(
    tmp_path: Path, write_split: Write, image_bytes: Bytes
) -> None:
    replaced = {1: (record(["what", "how"]), [image_bytes()] * 2)}
    store = SampleStore.open(write_split(tmp_path, "test", 3, replaced), "test")
    one, other = list_questions(store)  # the samples without kinds are passed over
    assert (one.key, one.index, one.kind, one.answer) == ("s1", 1, "what", "the colour")
    assert (other.key, other.index, other.kind, other.answer) == ("s1", 1, "how", "red, not blue")
    images = [{"type": "image"}, {"type": "image"}]
    assert one.prompt_messages == (SYSTEM, {"role": "user", "content": record([])["messages"][1]["content"]})
    assert other.prompt_messages == (SYSTEM, {"role": "user", "content": [*images, {"type": "text", "text": "how?"}]})
    _, formed = list_questions(store, QuestionForm("\n", " ", "another system message"))
    (system, asked), words = formed.prompt_messages, [{"type": "text", "text": text} for text in (" ", "\n", "how?")]
    assert system == SYSTEM
    assert asked["content"] == [images[0], words[0], images[1], *words[1:]]


@pytest.mark.parametrize("kinds", [["what"], ["a", "b", "c"], "what"])
def test_kinds_that_are_not_as_many_as_answers(
    tmp_path: Path, write_split: Write, image_bytes: Bytes, kinds: Any
) -> None:
    store = SampleStore.open(write_split(tmp_path, "test", 1, {0: (record(kinds), [image_bytes()] * 2)}), "test")
    with pytest.raises(SampleError, match=r"sample 's0' in .*: kinds \(2 answers, `kinds` is"):
        list_questions(store)


def test_broken_messages_are_told(tmp_path: Path, write_split: Write, image_bytes: Bytes) -> None:
    store = SampleStore.open(write_split(tmp_path, "test", 1, {0: (record(["what", "how"]), [image_bytes()])}), "test")
    with pytest.raises(SampleError, match="1 images, 2 image parts"):
        list_questions(store)


def test_a_later_question_follows_the_images_as_the_first_one_does(
    tmp_path: Path, write_split: Write, image_bytes: Bytes
) -> None:
    """As in LLaVA's data, with a line break behind each image."""
    talk = record(["what", "how"])
    image, gap = {"type": "image"}, {"type": "text", "text": "\n"}
    talk["messages"][1]["content"] = [image, gap, image, {"type": "text", "text": "\nwhat differs?"}]
    store = SampleStore.open(write_split(tmp_path, "test", 1, {0: (talk, [image_bytes()] * 2)}), "test")
    one, other = list_questions(store)
    assert one.prompt_messages == tuple(talk["messages"][:2])
    assert other.prompt_messages[1]["content"] == [image, gap, image, gap, {"type": "text", "text": "how?"}]
