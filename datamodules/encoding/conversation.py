"""Conversations and captions as token ids and labels, with the tokenizer's own chat template, in one pass.

The text is the one the template writes (chat_template.py); it is tokenised once, as a whole, and the offsets say which
tokens an answer became. Special tokens are control only where the template wrote them, or where an image part stands:
the engine that tokenises knows them under names which no content may hold, so the same words in a content are text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Tokenizer, processors

from datamodules.encoding.chat_template import ChatTemplate, Rendered
from datamodules.encoding.messages import Message, parts_of
from datamodules.encoding.special_tokens import OPEN, Engine, checked_text
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX


def plain_backend(tokenizer: Any, ends: bool) -> Tokenizer:
    """A copy of a fast tokenizer's own engine that neither pads nor cuts, whatever it was last called with.

    With `ends` False it also leaves out what is added around a text, and with it the trimming of blanks from offsets,
    which would hide to which token a blank belongs.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    if not ends:
        backend.post_processor = processors.Sequence([])
    return backend


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as tokens, every image token repeated as often as the language model needs it.

    Attributes:
        ids: S token ids.
        labels: S labels, IGNORE_INDEX where a position is not supervised.
        turn_ends: tokens up to the end of each answer, its end token included.
        images_before: image parts up to the end of each answer.
        images: image parts in all.
    """

    ids: list[int]
    labels: list[int]
    turn_ends: list[int]
    images_before: list[int]
    images: int


ANY_ANSWER: Message = {"role": "assistant", "content": "answer"}
"""Stands where the next answer will, so that a prompt is what the template writes in front of an answer."""


class _Answer(NamedTuple):
    """Where in a text an answer begins, with the template's blanks that are its own, and where its end token ends."""

    opening: int
    stop: int


class ConversationEncoder:
    """Messages -> (token ids, labels), labels being the assistant's words and the token that ends each answer.

    The template is given text: the text parts of a message joined, an image part as the image token's own text. What
    it makes of that is what is learnt, so where it trims contents (Llama 3 does), an answer's blanks at the ends are
    not there. Blanks which the template writes between its invitation to answer and the answer ("ASSISTANT:" + " red"),
    or between an answer and its end token, are the assistant's: it must write them to go on as it was taught.

    Args:
        tokenizer: a fast transformers tokenizer; its chat template is needed for conversations and prompts only.
        image_token_id: the special token that stands in the ids `tokens_per_image` times for every image part.

    Raises:
        ConfigError: the tokenizer is not a fast one, or `image_token_id` is not one of its special tokens.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, tokens_per_image: int) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(f"{tokenizer.name_or_path or 'the tokenizer'} is not a fast tokenizer: it has no offsets")
        self.tokenizer, self.image_token_id, self.tokens_per_image = tokenizer, image_token_id, tokens_per_image
        self._engine = Engine(plain_backend(tokenizer, ends=False), tokenizer.unk_token_id)
        if image_token_id not in self._engine.aliases:
            raise ConfigError(f"the image token {image_token_id} is not a special token of the tokenizer")
        self._image = self._engine.aliases[image_token_id]
        self._image_text = tokenizer.convert_ids_to_tokens(image_token_id)
        self.template = ChatTemplate(tokenizer)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Ids and labels of a whole conversation; IGNORE_INDEX where a position is not supervised.

        Raises:
            ConfigError: there is no template, or it has no end token after an answer.
            DataError: the template refuses or rewrites the messages or writes their answers in several ways, or a text
                can't be encoded.
        """
        encoded = self.encode_turns(messages)
        return encoded.ids, encoded.labels

    def encode_turns(self, messages: Sequence[Message]) -> EncodedConversation:
        """As `encode`, with where each answer ends.

        What a cut behind an answer leaves: let `kept` be the messages up to the k-th answer. `ids[: turn_ends[k]]` and
        the labels are then those of `encode_turns(kept)` up to its last turn's end. What `encode(kept)` has behind
        that is not supervised, and is what the template writes after its last message: nothing (Llama 3), a line break
        (ChatML), the end of the text (Phi 3).
        """
        text, spans, rendered = self._text(messages)
        answers = [self._answer(text, *span) for span in spans]
        self._check_history(messages, rendered)
        ids, starts, _ = self._tokens(text, [answer.opening for answer in answers])
        labels = [IGNORE_INDEX] * len(ids)
        turns = []
        for answer in answers:
            # The first token of the answer, and its end token, which is one for as long as its name.
            first, last = bisect_left(starts, answer.opening), bisect_right(starts, answer.stop - 1) - 1
            labels[first : last + 1] = ids[first : last + 1]
            turns.append(last + 1)
        places = [place for place, i in enumerate(ids) if i == self.image_token_id]
        images = [bisect_left(places, turn) for turn in turns]
        turn_ends = [turn + (self.tokens_per_image - 1) * before for turn, before in zip(turns, images, strict=True)]
        return EncodedConversation(
            self._expand(ids, ids), self._expand(labels, ids), turn_ends, images, images=len(places)
        )

    def prompt(self, messages: Sequence[Message], go_on: bool = False) -> list[int]:
        """Ids of the messages up to where the assistant's next answer begins; errors as in `encode`.

        They are those that training has before the first supervised token of that answer, whatever the template
        invites with by itself. With `go_on` the last message is the beginning of the answer, which the ids end with.
        """
        text, openings = self._asked(messages, go_on)
        ids, _, _ = self._tokens(text, openings)
        return self._expand(ids, ids)

    def written(self, messages: Sequence[Message], generate: bool = False, go_on: bool = False) -> str:
        """The text that the template writes, of which `encode` and, with `generate`, `prompt` make tokens."""
        text = self._asked(messages, go_on)[0] if generate or go_on else self._text(messages)[0]
        return self._engine.shown(text)

    def caption(self, text: str, images: int = 1) -> tuple[list[int], list[int]]:
        """Plain style: the first token (where the tokenizer has one), the images, then the caption and the end token.

        Ids and labels; caption and end token are supervised. Raises DataError for a text that can't be encoded.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if eos is None:
            raise ConfigError("the tokenizer has no eos_token to end a caption with")
        head = ([] if bos is None else [bos]) + [self.image_token_id] * (self.tokens_per_image * images)
        tail = [*self._engine.encode(checked_text(text))[0], eos]
        return head + tail, [IGNORE_INDEX] * len(head) + tail

    def words_of(self, written: str) -> str:
        """The words of an answer as the model wrote it, without the blanks that the template writes around them."""
        ending = self._closing[: len(self._closing) - len(self._closing.lstrip())]
        return written.removeprefix(self._blanks).removesuffix(ending)

    @property
    def end_token_id(self) -> int:
        """The token that training ends an answer with.

        Raises:
            ConfigError: there is no template, or it has no end token after an answer.
            DataError: the template refuses or rewrites a question and an answer.
        """
        ids, _, _ = self._engine.encode(self._closing)
        return ids[-1]

    def check_template(self) -> None:
        """Raises ConfigError where the tokenizer's chat template can't be used for training."""
        try:
            self.encode([{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}])
        except DataError as error:
            raise ConfigError(str(error)) from None

    def _asked(self, messages: Sequence[Message], go_on: bool) -> tuple[str, list[int]]:
        """The messages up to the next answer as the engine reads them, and where the answers in them begin."""
        if go_on and messages[-1]["role"] != "assistant":
            raise DataError(f"only an answer can be gone on with, the last message is of {messages[-1]['role']}")
        if go_on:
            text, spans, _ = self._text(messages)
            text = text[: spans[-1][1]]
        else:
            text, spans = self._before_an_answer(messages)
        return text, [self._opening(text, start) for start, _ in spans]

    def _before_an_answer(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """What the template writes in front of an answer to the messages, and where the answers in them are."""
        try:
            text, spans, _ = self._text([*messages, ANY_ANSWER])
        except DataError:  # a template that writes no answers has nothing but its own invitation
            text, spans, _ = self._text(messages, generate=True)
            return text, spans
        return text[: self._opening(text, spans[-1][0])], spans[:-1]

    def _text(self, messages: Sequence[Message], generate: bool = False) -> tuple[str, list[tuple[int, int]], Rendered]:
        """The conversation as the engine reads it, the places of its answers' words, and what the template wrote."""
        roles, contents, spelt = self._spelt(messages)
        rendered = self.template.render(roles, spelt, generate)
        parts = [self._engine.hide(rendered.pieces[0])]
        length, spans = len(parts[0]), []
        for role, content, trim, piece in zip(roles, contents, rendered.trims, rendered.pieces[1:], strict=True):
            words, written = trim(content), self._engine.hide(piece)
            if role == "assistant":
                spans.append((length, length + len(words)))
            parts += [words, written]
            length += len(words) + len(written)
        return "".join(parts), spans, rendered

    def _spelt(self, messages: Sequence[Message]) -> tuple[list[str], list[str], list[str]]:
        """Roles, contents for the engine, and contents for the template."""
        contents = [self._content(message) for message in messages]
        spelt = [content.replace(self._image, self._image_text) for content in contents]
        return [message["role"] for message in messages], contents, spelt

    def _check_history(self, messages: Sequence[Message], rendered: Rendered) -> None:
        """DataError where an answer that others follow is written otherwise than one that is asked for."""
        first = next((number for number, message in enumerate(messages) if message["role"] == "assistant"), None)
        if first is None or first + 1 == len(messages):
            return
        roles, _, spelt = self._spelt(messages[: first + 1])
        if self.template.render(roles, spelt).pieces[: first + 1] != rendered.pieces[: first + 1]:
            raise DataError(
                "the chat template writes an answer otherwise once other messages follow it (as those do that drop "
                "earlier thoughts), so that several turns would teach what is never asked; set "
                "language_model.chat_template to one that writes every answer alike, or cut conversations to one turn"
            )

    def _tokens(self, text: str, openings: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """As the engine's `encode`, with no token that reaches from the template's words into an answer's.

        A model is asked with the tokens in front of an answer, so they must not depend on how the answer begins. A
        special token that takes the blanks behind it, those of an answer too, is the same whatever it takes.
        """
        ids, starts, ends = self._engine.encode(text)
        crossed = []
        for opening in openings:
            before = bisect_left(starts, opening) - 1
            if before >= 0 and ends[before] > opening and OPEN not in text[starts[before] : opening]:
                crossed.append(opening)
        return self._engine.encode(text, crossed) if crossed else (ids, starts, ends)

    def _answer(self, text: str, start: int, end: int) -> "_Answer":
        if not text.startswith(self._closing, end):
            raise DataError("the chat template ends this answer otherwise than it ends others")
        return _Answer(self._opening(text, start), end + len(self._closing))

    def _opening(self, text: str, start: int) -> int:
        """Where an answer begins whose words begin at `start`."""
        return start - len(self._blanks) if text.endswith(self._blanks, 0, start) else start

    @cached_property
    def _blanks(self) -> str:
        return self.template.before_answers()

    @cached_property
    def _closing(self) -> str:
        return self._engine.hide(self.template.behind_answers(re.compile(rf"\s*(?:{self._engine.special.pattern})")))

    def _content(self, message: Message) -> str:
        """A message's text for the engine."""
        words = []
        for part in parts_of(message):
            if part["type"] == "image":
                if message["role"] == "assistant":
                    raise DataError("an answer holds an image, which can't be learnt to write")
                words.append(self._image)
            else:
                words.append(checked_text(part["text"]))
        return "".join(words)

    def _expand(self, values: list[int], ids: list[int]) -> list[int]:
        """The values of image tokens `tokens_per_image` times."""
        expanded: list[int] = []
        for value, i in zip(values, ids, strict=True):
            if i == self.image_token_id:
                expanded += [value] * self.tokens_per_image
            else:
                expanded.append(value)
        return expanded
