"""The questions of a split, one by one, for answers to be generated and scored."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datamodules.encoding.messages import image_parts, parts_of, shown_again
from datamodules.encoding.views import messages_of
from datamodules.storage.sample_store import SampleStore


@dataclass(frozen=True)
class Question:
    """One question about the images of sample `index`: the messages that ask it, and the answer to score against.

    `kind` groups questions in reports; `prompt_messages` are the conversation's system messages, if any, and one user
    message, so that no other turn helps: the question as it is where it holds all images, else with all of them in
    front of it, each joined to what follows as in its own turn.
    """

    key: str
    index: int
    kind: str
    prompt_messages: tuple[dict[str, Any], ...]
    answer: str


def list_questions(store: SampleStore) -> list[Question]:
    """One Question for every answer of the records that name the `kinds` of their answers, in order.

    Raises:
        SampleError: a record whose `kinds` are not as many as its answers, or whose messages are broken.
    """
    questions = []
    for i in range(len(store)):
        kinds = store.record(i).get("kinds")
        if kinds is None:
            continue
        messages = messages_of(store, i)
        system = tuple(message for message in messages if message["role"] == "system")
        turns = [(asked, said) for asked, said in pairwise(messages) if _is_turn(asked, said)]
        if not isinstance(kinds, list) or len(kinds) != len(turns):
            raise store.error(i, "kinds", f"{len(turns)} answers, `kinds` is {kinds}")
        talk = [message for message in messages if message["role"] != "system"]
        for kind, (asked, said) in zip(kinds, turns, strict=True):
            whole = image_parts([asked]) == image_parts(talk)
            content = parts_of(asked) if whole else shown_again(talk, _text(asked))
            prompt = (*system, {"role": "user", "content": content})
            questions.append(Question(store.key(i), i, str(kind), prompt, _text(said)))
    return questions


def _is_turn(asked: dict[str, Any], said: dict[str, Any]) -> bool:
    return asked["role"] == "user" and said["role"] == "assistant"


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
