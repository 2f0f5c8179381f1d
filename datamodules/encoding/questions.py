"""Lists the questions of a split, for answers to be generated and scored."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datamodules.encoding.messages import image_parts, parts_of, with_earlier_images
from datamodules.encoding.question_form import QuestionForm
from datamodules.encoding.views import messages_of
from datamodules.storage.sample_store import SampleStore


@dataclass(frozen=True)
class Question:
    """One question about the images of sample `index`, with its reference answer.

    Attributes:
        key: the sample's key.
        index: the sample's number.
        kind: groups questions in reports.
        prompt_messages: the conversation's system messages, if any, and one user message, so that no other turn helps.
            The user message contains all images of the conversation: images of other turns come first, each with the
            whitespace that follows it in its own turn.
        answer: the reference answer.
    """

    key: str
    index: int
    kind: str
    prompt_messages: tuple[dict[str, Any], ...]
    answer: str


def list_questions(
    store: SampleStore, asking: QuestionForm | None = None, other_kind: str | None = None
) -> list[Question]:
    """Returns one Question per answer of the records with `kinds`, in order.

    Args:
        store: the samples.
        asking: the form that the prompts are brought to; None keeps their own.
        other_kind: the kind of the answers of conversations without `kinds`; None leaves these out.

    Raises:
        SampleError: a record whose number of `kinds` is not its number of answers, or whose messages are broken.
    """
    questions = []
    for i in range(len(store)):
        record = store.record(i)
        kinds = record.get("kinds")
        if kinds is None and (other_kind is None or "messages" not in record):
            continue
        messages = messages_of(store, i)
        system = tuple(message for message in messages if message["role"] == "system")
        turns = [(first, second) for first, second in pairwise(messages) if _is_turn(first, second)]
        kinds = [other_kind] * len(turns) if kinds is None else kinds
        if not isinstance(kinds, list) or len(kinds) != len(turns):
            raise store.error(i, "kinds", f"{len(turns)} answers, `kinds` is {kinds}")
        talk = [message for message in messages if message["role"] != "system"]
        for kind, (question, answer) in zip(kinds, turns, strict=True):
            has_all_images = image_parts([question]) == image_parts(talk)
            content = parts_of(question) if has_all_images else with_earlier_images(talk, _text(question))
            prompt = (*system, {"role": "user", "content": content})
            prompt = prompt if asking is None else tuple(asking.apply(prompt))
            questions.append(Question(store.key(i), i, str(kind), prompt, _text(answer)))
    return questions


def _is_turn(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first["role"] == "user" and second["role"] == "assistant"


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
