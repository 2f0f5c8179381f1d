"""Encodes records as a conversation, a caption, or the targets of the encoder's prompts."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Piece
from datamodules.encoding.location_tokens import boxes_as_text, location_bins
from datamodules.encoding.messages import check_messages, image_parts, with_sizes
from datamodules.encoding.over_long import TOO_LONG, Messages, OverLong, Turns, answer_ends, some_turns, split_turns
from datamodules.encoding.planned_tokens import PlannedConversation, TokenPlan
from datamodules.encoding.special_tokens import plain_backend
from datamodules.images.tiling import Size
from datamodules.storage.sample import Samples
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import IGNORE_INDEX, DataContext

Example = tuple[list[int], list[int]]
"""Token ids and labels of one row."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoded:
    """One piece as tokens.

    Attributes:
        rows: its (ids, labels), or for the view `tasks` one (ids, ids) per task.
        images: number of the sample's images, or of their tiles, counted from the first, that belong to the piece.
        truncated: whether something was left out to fit `sequence_length`.
        question: the token ids of its last question; empty for a caption.
    """

    rows: list[Example]
    images: int
    truncated: bool = False
    question: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Measure:
    """The pieces of a sample.

    Attributes:
        pieces: (turns, or None for all of them; planned tokens) of each piece.
        truncated: whether some turns, or the end of the caption, are in none of the pieces.
    """

    pieces: list[tuple[Turns | None, int]]
    truncated: bool = False


class View(ABC):
    """Encodes the samples of a store as tokens; raises SampleError for a sample that cannot be used."""

    @abstractmethod
    def encode(self, store: Samples, piece: Piece) -> Encoded:
        """Returns the piece's tokens."""


class TextView(View):
    """Text with images for a language model.

    Args:
        encoder: encodes messages and captions.
        sequence_length: maximum number of tokens in a row.
        over_long: treatment of a longer sample. `truncate` leaves out whole turns at the end of a conversation, or
            the end of a caption; `split` makes several conversations of one, each with the system message and the
            images so far; `drop` leaves the sample out.
        planners: encoders that decide what is too long, where that must not depend on the model: a sample is planned
            with the most tokens that one of them makes of it. None of them for `encoder` alone.
        by_turn: whether every answer of a conversation is a piece of its own, with the turns before it, for a fusion
            that reads the question. Only that answer is supervised. A caption has no turns.
    """

    def __init__(
        self,
        encoder: ConversationEncoder,
        sequence_length: int,
        over_long: OverLong = "truncate",
        planners: Sequence[ConversationEncoder] = (),
        by_turn: bool = False,
    ) -> None:
        self.encoder, self.plan = encoder, TokenPlan(encoder, planners)
        self.sequence_length, self.over_long, self.by_turn = sequence_length, over_long, by_turn

    @abstractmethod
    def measure(self, store: Samples, sample: int) -> Measure:
        """Returns the pieces of a sample, with their planned tokens."""

    def sizes(self, store: Samples, i: int) -> list[Size] | None:
        """Returns the sizes of a sample's images, read from their headers; None where images are not tiled."""
        return store.image_sizes(i) if self.plan.tiled else None


class ConversationView(TextView):
    """Encodes the record's `messages`.

    A conversation is too long where its last answer ends beyond `sequence_length`. What the template writes after the
    last end token (a line break, the end of the text) is not supervised, and is cut off where it does not fit.
    """

    def __init__(self, encoder: ConversationEncoder, *arguments: Any, **named: Any) -> None:
        super().__init__(encoder, *arguments, **named)
        encoder.check_template()

    def encode(self, store: Samples, piece: Piece) -> Encoded:
        """Returns ids and labels of a conversation, or of some of its turns."""
        i, messages = piece.sample, self._messages(store, piece.sample)
        if piece.turns is None:
            kept, found = self._kept(store, i, messages, self._encoded(store, i, messages))
            return Encoded([self._row(found)], found.encoded.images, truncated=len(kept) < len(messages))
        messages = some_turns(messages, *piece.turns)
        found = self._encoded(store, i, messages)
        ids, labels = self._row(found)
        if self.by_turn:
            earlier = ([0, *found.encoded.turn_ends])[-2]
            labels = [IGNORE_INDEX] * earlier + labels[earlier:]
        return Encoded([(ids, labels)], found.encoded.images, question=self.encoder.question(messages))

    def measure(self, store: Samples, sample: int) -> Measure:
        """Returns the pieces of a conversation, without decoding an image."""
        messages = self._messages(store, sample)
        found = self._encoded(store, sample, messages)
        if self.over_long != "split" or found.ends[-1] <= self.sequence_length:
            kept, found = self._kept(store, sample, messages, found)
            pieces: list[tuple[Turns | None, int]] = [(None, self._tokens(found))]
            if self.by_turn:
                pieces = self._each_turn(store, sample, messages, (0, len(found.ends)))
            return Measure(pieces, truncated=len(kept) < len(messages))
        split = self._split(store, sample, messages)
        if not split:
            raise store.error(sample, TOO_LONG, f"each of its turns has more than {self.sequence_length} tokens")
        kept_turns = sum(turns[1] - turns[0] for turns, _ in split)
        pieces = [*split]
        if self.by_turn:
            pieces = [piece for turns, _ in split for piece in self._each_turn(store, sample, messages, turns)]
        return Measure(pieces, truncated=kept_turns < len(found.ends))

    def _messages(self, store: Samples, i: int) -> Messages:
        messages, sizes = messages_of(store, i), self.sizes(store, i)
        return messages if sizes is None else with_sizes(messages, sizes)

    def _encoded(self, store: Samples, i: int, messages: Messages) -> PlannedConversation:
        found = _located(store, i, self.plan.conversation, messages)
        if not found.ends:
            raise store.error(i, "no answer", "no message of the assistant")
        return found

    def _kept(
        self, store: Samples, i: int, messages: Messages, found: PlannedConversation
    ) -> tuple[Messages, PlannedConversation]:
        """Returns the messages up to the last answer that fits, and their tokens; SampleError where none fits."""
        ends, limit = found.ends, self.sequence_length
        if found.tokens <= limit:
            return messages, found
        if ends[-1] > limit and self.over_long == "drop":
            raise store.error(i, TOO_LONG, f"{found.tokens} tokens, at most {limit} are kept")
        fitting = bisect_right(ends, limit)
        if fitting == 0:
            raise store.error(i, TOO_LONG, f"its first turn has more than {limit} tokens")
        kept = messages[: answer_ends(messages)[fitting - 1]]
        return kept, found if len(kept) == len(messages) else self._encoded(store, i, kept)

    def _split(self, store: Samples, i: int, messages: Messages) -> list[tuple[Turns, int]]:
        """Returns the pieces into which an over-long conversation is split, with their planned tokens."""

        def encoded(start: int, end: int) -> PlannedConversation:
            return self._encoded(store, i, some_turns(messages, start, end))

        turns = len(answer_ends(messages))
        pieces = split_turns(turns, self.sequence_length, lambda start, end: encoded(start, end).ends[-1])
        return [(piece, self._tokens(encoded(*piece))) for piece in pieces]

    def _each_turn(self, store: Samples, i: int, messages: Messages, turns: Turns) -> list[tuple[Turns | None, int]]:
        """Returns a piece for each of the turns, with those of them before it, and its planned tokens."""
        pieces = [(turns[0], last + 1) for last in range(*turns)]
        return [(piece, self._tokens(self._encoded(store, i, some_turns(messages, *piece)))) for piece in pieces]

    def _tokens(self, found: PlannedConversation) -> int:
        """Returns the planned tokens of the row that `_row` returns."""
        return min(found.tokens, self.sequence_length)

    def _row(self, found: PlannedConversation) -> Example:
        """Cuts a conversation to its planned tokens; the labels after the last answer are IGNORE_INDEX anyway."""
        encoded = found.encoded
        kept = len(encoded.ids) - (found.tokens - self._tokens(found))
        return encoded.ids[:kept], encoded.labels[:kept]


class CaptionView(TextView):
    """Encodes the record's `caption` after its images."""

    def encode(self, store: Samples, piece: Piece) -> Encoded:
        """Returns ids and labels of a caption."""
        (ids, labels), tiles, planned = self._caption(store, piece.sample)
        surplus = max(planned - self.sequence_length, 0)
        kept = len(ids) - surplus
        return Encoded([(ids[:kept], labels[:kept])], tiles, truncated=surplus > 0)

    def measure(self, store: Samples, sample: int) -> Measure:
        """Returns one piece, regardless of the caption's length."""
        _, _, planned = self._caption(store, sample)
        limit = self.sequence_length
        return Measure([(None, min(planned, limit))], truncated=planned > limit)

    def _caption(self, store: Samples, i: int) -> tuple[Example, int, int]:
        """Returns ids and labels of the whole caption, its number of images or tiles, and its planned tokens."""
        record = store.record(i)
        if "caption" not in record and "messages" in record:
            raise store.error(i, "no caption", "`view: conversation` reads its messages")
        text = _field(store, i, record, "caption")
        images, limit = store.image_count(i), self.sequence_length
        if images == 0:
            raise store.error(i, "image count", "a caption needs an image")
        example, tiles, planned = _located(store, i, self.plan.caption, text, images, self.sizes(store, i))
        if planned > limit and self.over_long == "drop":
            raise store.error(i, TOO_LONG, f"{planned} tokens, at most {limit} are kept")
        if planned - limit >= sum(label != IGNORE_INDEX for label in example[1]):
            raise store.error(i, TOO_LONG, f"its images alone take {limit} tokens")
        return example, tiles, planned


class TasksView(View):
    """Encodes one target per prompt of the encoder: the record's boxes for `grounding`, else the field of that name."""

    def __init__(self, context: DataContext, sequence_length: int) -> None:
        self.tasks, self.sequence_length = context.tasks, sequence_length
        self._tokenizer, self._eos = plain_backend(context.tokenizer, ends=True), context.tokenizer.eos_token_id
        self._bins = location_bins(context.tokenizer) if "grounding" in context.tasks else 0

    def encode(self, store: Samples, piece: Piece) -> Encoded:
        """Returns the targets of all tasks, each cut to `sequence_length`."""
        i = piece.sample
        images = store.image_count(i)
        if images != 1:
            raise store.error(i, "image count", f"prompted targets need one image, there are {images}")
        record = store.record(i)
        rows, longest = [], 0
        for task in self.tasks:
            grounding = task == "grounding"
            text = _grounding(store, i, record, self._bins) if grounding else _field(store, i, record, task)
            ids = self._tokenizer.encode(text).ids
            # Tokenizers of encoder-decoder models add the eos token themselves, others do not.
            target = ids if ids and ids[-1] == self._eos else [*ids, self._eos]
            rows.append((target[: self.sequence_length], target[: self.sequence_length]))
            longest = max(longest, len(target))
        return Encoded(rows, 1, truncated=longest > self.sequence_length)


def messages_of(store: Samples, i: int) -> Messages:
    """Returns the checked messages of a sample; SampleError for broken ones, or a wrong number of image parts."""
    record = store.record(i)
    messages = record.get("messages")
    problem = check_messages(messages)
    if problem == "no messages":
        raise store.error(i, problem, "`view: caption` reads its caption" if record.get("caption") else "")
    if problem:
        raise store.error(i, "bad messages", problem)
    assert isinstance(messages, list)
    images, parts = store.image_count(i), image_parts(messages)
    if images != parts:
        raise store.error(i, "image count", f"{images} images, {parts} image parts in its messages")
    return messages


def _grounding(store: Samples, i: int, record: dict[str, Any], bins: int) -> str:
    try:
        return boxes_as_text(record["boxes"], bins)
    except (KeyError, TypeError, ValueError):
        raise store.error(i, "no boxes", "expected `boxes` with label and box [x0, y0, x1, y1]") from None


def _field(store: Samples, i: int, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise store.error(i, f"no {name}", f"the JSON has no text '{name}'")
    return value


def _located(store: Samples, i: int, encode: Callable[..., Result], *content: Any) -> Result:
    """Calls `encode` and turns a DataError into one that names shard and key."""
    try:
        return encode(*content)
    except DataError as error:
        raise store.error(i, "not encodable", str(error)) from None
