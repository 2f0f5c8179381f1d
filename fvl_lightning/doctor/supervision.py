"""What `fvl doctor` asks of the data: shards and their indexes, and what of their rows is supervised."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Piece
from datamodules.encoding.messages import Message, image_parts, parts_of
from datamodules.encoding.question_form import look_at_asking
from datamodules.encoding.views import TextView, messages_of
from datamodules.storage.sample import SampleError, spread
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.chat_date import writes_the_day
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import plural, visible
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.doctor.finding import Finding

ROWS = 64
"""Samples that are looked at, over all data sets."""
SHARDS = 4
"""Of each data set from which they are taken."""
MADE_UP: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A red square."},
    {"role": "user", "content": "And its colour?"},
    {"role": "assistant", "content": "Red."},
]


@dataclass
class Looked:
    """What the rows that were looked at are like."""

    tokens: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    over_long: int = 0
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Rows of which something else than the answers is supervised, or with another number of image tokens."""

    @property
    def mean_tokens(self) -> int | None:
        """Of a row; None where none was read."""
        return round(sum(self.tokens) / len(self.tokens)) if self.tokens else None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row; None where none was read."""
        return max(self.tokens, default=None)

    def images_per_row(self, config: Any) -> int:
        """The most that were seen in a row; of packed rows as many as a row of such samples has."""
        if not self.tokens:
            return 1
        if config.layout == "packed":
            return math.ceil(config.sequence_length * sum(self.images) / sum(self.tokens))
        return max(self.images)


def look_at_rows(data: Any, looked: Looked) -> None:
    """A sample of the rows of the split train, as training makes them, into `looked`."""
    parts = data.parts("train")
    for part in parts:
        some = [part.shards[number] for number in spread(len(part.shards), SHARDS)]
        store, view = SampleStore(some, "train", data.cache), data.view(part.view)
        for i in spread(len(store), max(1, ROWS // len(parts))):
            try:
                if isinstance(view, TextView):
                    _look_at(store, i, part.view, view, looked)
                else:
                    _look_at_targets(store, i, view, looked)
            except SampleError as error:
                looked.broken.append(str(error))


def look_at_examples(encoder: ConversationEncoder, view: str, looked: Looked) -> None:
    """The same of a row that is made up, where there are no shards yet."""
    if view == "caption":
        ids, labels = encoder.caption("A red square.")
        _compare("made up", encoder, ids, labels, ["A red square."], 1, looked)
    else:
        ids, labels = encoder.encode(MADE_UP)
        _compare("made up", encoder, ids, labels, answers(MADE_UP), 1, looked)


def check_supervision(experiment: ExperimentConfig, looked: Looked, real: bool) -> Iterator[Finding]:
    """The verdict on what was looked at."""
    config, count = experiment.data.config, len(looked.tokens) + len(looked.wrong)
    if looked.wrong:
        advice = "the chat template cannot be used as it is: give another in language_model.chat_template"
        yield Finding("supervision", "failed", f"{len(looked.wrong)} of {count} rows: {looked.wrong[0]}", advice)
    elif looked.tokens:
        what = f"{plural(count, 'row')} of the shards" if real else "a made-up row, since no shards can be read"
        said = f"{what}: exactly the answers are supervised, image tokens match, {looked.mean_tokens} tokens on average"
        yield Finding("supervision", "ok", said)
    if looked.over_long:
        said = f"{looked.over_long} of {count} rows have more than {config.sequence_length} tokens: over_long is "
        advice = "raise data.sequence_length, or see docs/data.md for data.over_long"
        yield Finding("row length", "warning", said + config.over_long, advice)
    if looked.broken:
        share = len(looked.broken) / (count + len(looked.broken))
        said = f"{plural(len(looked.broken), 'row')} cannot be used, such as {looked.broken[0]}"
        advice = "`fvl shards check` names all; training skips up to data.max_bad_fraction of them"
        yield Finding("rows", "failed" if share > config.max_bad_fraction else "warning", said, advice)


def has_conversations(data: Any, experiment: ExperimentConfig, readable: bool) -> bool:
    """Whether any of the data sets is trained on as conversations."""
    views = {part.view for part in data.parts("train")} if readable else {experiment.data.config.view}
    return "conversation" in views


def check_question_form(data: Any) -> Iterator[Finding]:
    """How the data asks, which the model will be asked in, and what differs within it."""
    found, differences = look_at_asking(data)
    joins = f"{found.behind_image!r} stands between an image and the words behind it" if found.behind_image else ""
    system = "all conversations have one message of the system" if found.system else ""
    if said := " and ".join(filter(None, (joins, system))):
        yield Finding("asking", "ok", f"{said}: the saved processor asks so too")
    for sentence in differences:
        advice = "make the data sets alike, or give what differs where the model is asked"
        yield Finding("asking", "warning", sentence, advice)


def check_chat_template(encoder: ConversationEncoder, day: str | None) -> Iterator[Finding]:
    """What of the chat template is other than people expect: its date, its invitation, and several turns.

    Args:
        day: `language_model.chat_date`, where the language model has one.
    """
    if day and writes_the_day(encoder.template.text):
        said = f"it asks for the date: {day} is written on every day, in training and when the model is asked"
        yield Finding("chat template", "ok", f"{said} (language_model.chat_date)")
    if other := encoder.template.other_invitation():
        theirs, ours = (visible(words)[:60] or "nothing" for words in other)
        said = f"by itself it invites an answer with {theirs!r} where training's answers follow {ours!r}"
        advice = (
            "every command and the saved processor ask as training does; for other programs give a template in "
            "language_model.chat_template whose invitation is what stands before its answers"
        )
        yield Finding("chat template", "warning", said, advice)
    try:
        encoder.encode(MADE_UP)
    except DataError as error:
        advice = "docs/data.md, under \"What a row is\", shows how Qwen3's template is changed"
        yield Finding("chat template", "warning", f"conversations of several turns are refused: {error}", advice)


def answers(messages: list[Message]) -> list[str]:
    """The words of the assistant."""
    return [
        "".join(part["text"] for part in parts_of(message)) for message in messages if message["role"] == "assistant"
    ]


def _look_at(store: SampleStore, i: int, name: str, view: TextView, looked: Looked) -> None:
    encoder, images = view.encoder, store.image_count(i)
    try:
        if name == "caption":
            expected = [store.record(i)["caption"]]
            ids, labels = encoder.caption(expected[0], images)
        else:
            messages = list(messages_of(store, i))
            images, expected = image_parts(messages), answers(messages)
            ids, labels = encoder.encode(messages)
    except DataError as error:
        raise error if isinstance(error, SampleError) else store.error(i, "not encodable", str(error)) from None
    except KeyError:
        raise store.error(i, "no caption") from None
    _compare(store.key(i), encoder, ids, labels, expected, images, looked)
    looked.over_long += len(ids) > view.sequence_length


def _look_at_targets(store: SampleStore, i: int, view: Any, looked: Looked) -> None:
    encoded = view.encode(store, Piece(i))
    looked.tokens.append(max(len(ids) for ids, _ in encoded.rows))
    looked.images.append(encoded.images)
    looked.over_long += encoded.truncated


def _compare(
    key: str,
    encoder: ConversationEncoder,
    ids: list[int],
    labels: list[int],
    expected: list[str],
    images: int,
    looked: Looked,
) -> None:
    """Decodes what is supervised, and counts image tokens."""
    groups = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX)
    spoken = [[token for token, _ in group] for supervised, group in groups if supervised]
    decode = encoder.tokenizer.decode
    said = [decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() for run in spoken]
    wanted = [answer.strip() for answer in expected]
    placeholders, needed = ids.count(encoder.image_token_id), images * encoder.tokens_per_image
    if said != wanted:
        found, missed = next(
            ((one, other) for one, other in zip(said, wanted, strict=False) if one != other),
            (f"{len(said)} runs of tokens", f"{len(wanted)} answers"),
        )
        looked.wrong.append(f"'{key}' has {visible(found)[:60]!r} supervised in place of {visible(missed)[:60]!r}")
    elif any(run[-1] not in encoder.tokenizer.all_special_ids for run in spoken):
        looked.wrong.append(f"'{key}' has an answer that ends without an end token")
    elif placeholders != needed:
        looked.wrong.append(f"'{key}' has {placeholders} image tokens in place of {needed}")
    else:
        looked.tokens.append(len(ids))
        looked.images.append(images)


