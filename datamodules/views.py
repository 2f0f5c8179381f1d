"""What a record is to a stage: a conversation, a caption, or the targets of the encoder's prompts."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.conversation import ConversationEncoder, check_messages, image_parts, plain_backend
from datamodules.store import SampleStore
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import IGNORE_INDEX, DataContext

Messages = Sequence[dict[str, Any]]
Example = tuple[list[int], list[int]]
"""Token ids and labels of one row."""


@dataclass(frozen=True)
class Encoded:
    """One sample as tokens: `rows` holds its (ids, labels), or for the view `tasks` one (ids, ids) per task.

    `images` is how many of the sample's images, from the first on, belong to it; `truncated` whether something was
    left out to fit `sequence_length`.
    """

    rows: list[Example]
    images: int
    truncated: bool = False


View = Callable[[SampleStore, int], Encoded]
"""Sample number -> tokens; raises SampleError for a sample that can't be used."""


def conversation_view(encoder: ConversationEncoder, sequence_length: int) -> View:
    """The record's `messages`; whole turns at the end are dropped where a conversation is too long."""
    encoder.check_template()

    def encode(store: SampleStore, i: int) -> Encoded:
        messages = messages_of(store, i)
        kept = messages
        ids, labels = _located(store, i, encoder.encode, messages)
        if len(ids) > sequence_length:
            kept = _shortened(messages, sequence_length, encoder)
            if not kept:
                raise store.error(i, "too long", f"its first turn has more than {sequence_length} tokens")
            ids, labels = encoder.encode(kept)
        if all(label == IGNORE_INDEX for label in labels):
            raise store.error(i, "no answer", "no message of the assistant")
        return Encoded([(ids, labels)], image_parts(kept), truncated=len(kept) < len(messages))

    return encode


def caption_view(encoder: ConversationEncoder, sequence_length: int) -> View:
    """The record's `caption` after its images; cut at the end where it is too long."""

    def encode(store: SampleStore, i: int) -> Encoded:
        text = _field(store, i, store.record(i), "caption")
        images = store.image_count(i)
        if images == 0:
            raise store.error(i, "image count", "a caption needs an image")
        ids, labels = _located(store, i, encoder.caption, text, images)
        if all(label == IGNORE_INDEX for label in labels[:sequence_length]):
            raise store.error(i, "too long", f"its images alone take {sequence_length} tokens")
        return Encoded([(ids[:sequence_length], labels[:sequence_length])], images, len(ids) > sequence_length)

    return encode


def tasks_view(context: DataContext, sequence_length: int) -> View:
    """One target per prompt of the encoder: for `grounding` the record's boxes, else the field of that name."""
    tokenizer, eos = plain_backend(context.tokenizer, ends=True), context.tokenizer.eos_token_id
    bins = location_bins(context.tokenizer) if "grounding" in context.tasks else 0

    def encode(store: SampleStore, i: int) -> Encoded:
        images = store.image_count(i)
        if images != 1:
            raise store.error(i, "image count", f"prompted targets need one image, there are {images}")
        record = store.record(i)
        rows, longest = [], 0
        for task in context.tasks:
            text = _grounding(store, i, record, bins) if task == "grounding" else _field(store, i, record, task)
            ids = tokenizer.encode(text).ids
            # Tokenizers of encoder-decoder models end a text themselves; others leave it to us.
            ended = ids if ids and ids[-1] == eos else [*ids, eos]
            rows.append((ended[:sequence_length], ended[:sequence_length]))
            longest = max(longest, len(ended))
        return Encoded(rows, 1, truncated=longest > sequence_length)

    return encode


def messages_of(store: SampleStore, i: int) -> Messages:
    """The messages of a sample, checked, with as many image parts as it has images; SampleError otherwise."""
    messages = store.record(i).get("messages")
    problem = check_messages(messages)
    if problem:
        raise store.error(i, "no messages" if problem == "no messages" else "bad messages", problem)
    assert isinstance(messages, list)
    there, spoken = store.image_count(i), image_parts(messages)
    if there != spoken:
        raise store.error(i, "image count", f"{there} images, {spoken} image parts in its messages")
    return messages


def location_bins(tokenizer: Any) -> int:
    """How many location tokens <loc_0>, <loc_1> ... the tokenizer has; DataError if none."""
    vocabulary = tokenizer.get_vocab()
    bins = 0
    while f"<loc_{bins}>" in vocabulary:
        bins += 1
    if bins == 0:
        raise DataError("prompt 'grounding': the tokenizer has no location tokens <loc_0>, <loc_1> ...")
    return bins


def boxes_as_text(boxes: Sequence[dict[str, Any]], bins: int) -> str:
    """label<loc_x0><loc_y0><loc_x1><loc_y1> of every box, joined; coordinates are fractions of the picture's sides."""
    words = []
    for box in boxes:
        x0, y0, x1, y1 = (min(max(math.floor(value * bins), 0), bins - 1) for value in box["box"])
        words.append(f"{box['label']}<loc_{x0}><loc_{y0}><loc_{x1}><loc_{y1}>")
    return "".join(words)


def _grounding(store: SampleStore, i: int, record: dict[str, Any], bins: int) -> str:
    try:
        return boxes_as_text(record["boxes"], bins)
    except (KeyError, TypeError, ValueError):
        raise store.error(i, "no boxes", "expected `boxes` with label and box [x0, y0, x1, y1]") from None


def _field(store: SampleStore, i: int, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise store.error(i, f"no {name}", f"the JSON has no text '{name}'")
    return value


def _located(store: SampleStore, i: int, encode: Callable[..., Example], *content: Any) -> Example:
    """Encodes, with DataErrors turned into ones that name shard and key."""
    try:
        return encode(*content)
    except DataError as error:
        raise store.error(i, "not encodable", str(error)) from None


def _shortened(messages: Messages, sequence_length: int, encoder: ConversationEncoder) -> Messages:
    """The most turns from the first on that fit; empty where not even one does."""
    ends = [number + 1 for number, message in enumerate(messages) if message["role"] == "assistant"]
    fitting = bisect_right(ends, sequence_length, key=lambda end: len(encoder.encode(messages[:end])[0]))
    return messages[: ends[fitting - 1]] if fitting else []
