"""Encodes conversations and captions as token ids and labels, with the tokenizer's own chat template.

The text comes from the template (chat_template.py); it is tokenised once, as a whole, and the offsets show which tokens
belong to an answer. Special tokens are recognised only where the template wrote them, or where an image part stands:
the tokenizer knows them by aliases that no content may contain (special_tokens.py), so the same characters in a
content are ordinary text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from datamodules.encoding.chat_template import ChatTemplate, Rendered
from datamodules.encoding.messages import SIZE, Message, parts_of
from datamodules.encoding.special_tokens import OPEN, AliasedTokenizer, check_text, plain_backend
from datamodules.images.tiling import Size, Tiling
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as tokens, with `tokens_per_image` placeholders per image, or per tile of an image.

    Attributes:
        ids: S token ids.
        labels: S labels, IGNORE_INDEX where a position is not supervised.
        turn_ends: number of tokens up to the end of each answer, its end token included.
        images_before: number of images, or of their tiles, up to the end of each answer.
        images: number of all of them.
    """

    ids: list[int]
    labels: list[int]
    turn_ends: list[int]
    images_before: list[int]
    images: int


ANY_ANSWER: Message = {"role": "assistant", "content": "answer"}
"""Placeholder for the next answer, so that a prompt is what the template writes in front of an answer."""


class _Answer(NamedTuple):
    """Offsets in a text: the beginning of an answer, whitespace included, and the end of its end token."""

    opening: int
    stop: int


class ConversationEncoder:
    """Encodes messages as token ids and labels; each answer and its end token are supervised.

    The template receives text: the joined text parts of a message, with the image token's text for an image part.
    Training learns what the template makes of it: where it trims contents (as Llama 3 does), the whitespace around an
    answer is lost. Whitespace that the template writes between its generation prompt and the answer ("ASSISTANT:" +
    " red"), or between an answer and its end token, is supervised too: the model must generate it.

    Args:
        tokenizer: a fast transformers tokenizer; its chat template is needed for conversations and prompts only.
        image_token_id: the special token that stands `tokens_per_image` times for every image or tile.
        tokens_per_image: number of tokens that the model makes of one image or tile.
        tiling: the rule by which an image part with a size (`with_sizes`) becomes tiles; None for one tile each.

    Raises:
        ConfigError: the tokenizer is not a fast one, or `image_token_id` is not one of its special tokens.
    """

    def __init__(
        self, tokenizer: Any, image_token_id: int, tokens_per_image: int, tiling: Tiling | None = None
    ) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(f"{tokenizer.name_or_path or 'the tokenizer'} is not a fast tokenizer: it has no offsets")
        self.tokenizer, self.image_token_id, self.tokens_per_image = tokenizer, image_token_id, tokens_per_image
        self.tiling = tiling
        self._aliased = AliasedTokenizer(plain_backend(tokenizer, ends=False), tokenizer.unk_token_id)
        if image_token_id not in self._aliased.aliases:
            raise ConfigError(f"the image token {image_token_id} is not a special token of the tokenizer")
        self._image = self._aliased.aliases[image_token_id]
        self._image_text = tokenizer.convert_ids_to_tokens(image_token_id)
        self.template = ChatTemplate(tokenizer)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Returns ids and labels of a whole conversation, with IGNORE_INDEX where a position is not supervised.

        Raises:
            ConfigError: there is no template, or it writes no end-of-turn token after an answer.
            DataError: the template refuses or rewrites the messages, or writes answers inconsistently, or a text cannot
                be encoded.
        """
        encoded = self.encode_turns(messages)
        return encoded.ids, encoded.labels

    def encode_turns(self, messages: Sequence[Message]) -> EncodedConversation:
        """Encodes like `encode`, and also returns the end of each answer.

        A conversation can be cut after an answer: let `kept` be the messages up to the k-th answer. Then
        `ids[: turn_ends[k]]` and the labels equal those of `encode_turns(kept)` up to its last turn's end. After that,
        `encode(kept)` only has unsupervised tokens that the template writes after the last message: none (Llama 3), a
        line break (ChatML), the end of the text (Phi 3).
        """
        text, spans, rendered = self._text(messages)
        answers = [self._answer(text, *span) for span in spans]
        self._check_history(messages, rendered)
        ids, starts, _ = self._tokens(text, [answer.opening for answer in answers])
        labels = [IGNORE_INDEX] * len(ids)
        turns = []
        for answer in answers:
            # The first token of the answer, and its end token: an alias is a single token.
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
        """Returns the ids of the messages up to the assistant's next answer; errors as in `encode`.

        The ids equal those before the first supervised token of that answer in training, even where the template's own
        generation prompt differs. With `go_on` the last message is the beginning of the answer, which the ids end with.
        """
        text, openings = self._asked(messages, go_on)
        ids, _, _ = self._tokens(text, openings)
        return self._expand(ids, ids)

    def question(self, messages: Sequence[Message]) -> list[int]:
        """Returns the token ids of the last question by themselves: of the text of the last user message."""
        asked = next((message for message in reversed(messages) if message["role"] == "user"), {"content": ""})
        texts = [part["text"] for part in parts_of(asked) if part["type"] == "text"]
        return self._aliased.encode(check_text("".join(texts).strip()))[0]

    def written(self, messages: Sequence[Message], generate: bool = False, go_on: bool = False) -> str:
        """Returns the template's text, which `encode` (or with `generate`, `prompt`) turns into tokens."""
        text = self._asked(messages, go_on)[0] if generate or go_on else self._text(messages)[0]
        return self._aliased.show(text)

    def caption(self, text: str, images: int = 1, sizes: Sequence[Size] | None = None) -> tuple[list[int], list[int]]:
        """Returns ids and labels of a caption: the bos token (if any), the images, the caption and the eos token.

        Caption and eos token are supervised. `sizes` has the size of each image, if they become tiles.

        Raises:
            ConfigError: the tokenizer has no eos token.
            DataError: a text that cannot be encoded.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if eos is None:
            raise ConfigError("the tokenizer has no eos_token to end a caption with")
        shown = [self.image_token_id] * (self.tokens_per_image * images) if sizes is None else self.image_ids(sizes)
        head = ([] if bos is None else [bos]) + shown
        tail = [*self._aliased.encode(check_text(text))[0], eos]
        return head + tail, [IGNORE_INDEX] * len(head) + tail

    def image_ids(self, sizes: Sequence[Size]) -> list[int]:
        """Returns the token ids of images of these sizes, one after the other."""
        ids, _, _ = self._aliased.encode("".join(self._image_of(size) for size in sizes))
        return self._expand(ids, ids)

    def words_of(self, written: str) -> str:
        """Removes the template's whitespace around an answer that the model has generated."""
        ending = self._closing[: len(self._closing) - len(self._closing.lstrip())]
        return written.removeprefix(self._blanks).removesuffix(ending)

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer in training.

        Raises:
            ConfigError: there is no template, or it writes no end-of-turn token after an answer.
            DataError: the template refuses or rewrites a question and an answer.
        """
        ids, _, _ = self._aliased.encode(self._closing)
        return ids[-1]

    def check_template(self) -> None:
        """Raises ConfigError where the tokenizer's chat template cannot be used for training."""
        try:
            self.encode([{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}])
        except DataError as error:
            raise ConfigError(str(error)) from None

    def _asked(self, messages: Sequence[Message], go_on: bool) -> tuple[str, list[int]]:
        """Returns the aliased text of the messages up to the next answer, and the openings of the answers in it."""
        if go_on and messages[-1]["role"] != "assistant":
            raise DataError(f"only an answer can be continued, the last message has role {messages[-1]['role']}")
        if go_on:
            text, spans, _ = self._text(messages)
            text = text[: spans[-1][1]]
        else:
            text, spans = self._before_an_answer(messages)
        return text, [self._opening(text, start) for start, _ in spans]

    def _before_an_answer(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Returns what the template writes in front of an answer to the messages, and the spans of earlier answers."""
        try:
            text, spans, _ = self._text([*messages, ANY_ANSWER])
        except DataError:  # a template that writes no answers only has its own generation prompt
            text, spans, _ = self._text(messages, generate=True)
            return text, spans
        return text[: self._opening(text, spans[-1][0])], spans[:-1]

    def _text(self, messages: Sequence[Message], generate: bool = False) -> tuple[str, list[tuple[int, int]], Rendered]:
        """Returns the conversation's aliased text, the spans of its answers in it, and the template's rendering."""
        roles, contents, plain_contents = self._contents(messages)
        rendered = self.template.render(roles, plain_contents, generate)
        texts = [self._aliased.hide(rendered.pieces[0])]
        length, spans = len(texts[0]), []
        for role, content, trim, piece in zip(roles, contents, rendered.trims, rendered.pieces[1:], strict=True):
            trimmed, template_text = trim(content), self._aliased.hide(piece)
            if role == "assistant":
                spans.append((length, length + len(trimmed)))
            texts += [trimmed, template_text]
            length += len(trimmed) + len(template_text)
        return "".join(texts), spans, rendered

    def _contents(self, messages: Sequence[Message]) -> tuple[list[str], list[str], list[str]]:
        """Returns a list each of roles, contents with the image token's alias, and contents with its text."""
        contents = [self._content(message) for message in messages]
        plain_contents = [content.replace(self._image, self._image_text) for content in contents]
        return [message["role"] for message in messages], contents, plain_contents

    def _check_history(self, messages: Sequence[Message], rendered: Rendered) -> None:
        """Raises DataError where the template writes an earlier answer differently from the last one."""
        first = next((number for number, message in enumerate(messages) if message["role"] == "assistant"), None)
        if first is None or first + 1 == len(messages):
            return
        roles, _, contents = self._contents(messages[: first + 1])
        if self.template.render(roles, contents).pieces[: first + 1] != rendered.pieces[: first + 1]:
            raise DataError(
                "the chat template writes an answer differently once messages follow it (for instance without its "
                "thoughts), so that training on several turns would not match generation; set "
                "language_model.chat_template to one that writes all answers alike, or cut conversations to one turn"
            )

    def _tokens(self, text: str, openings: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Encodes an aliased text so that no token spans the template's text and an answer.

        A prompt consists of the tokens in front of an answer, so they must not depend on how the answer begins. A
        special token that absorbs the whitespace after it stays the same token, whatever it absorbs.
        """
        ids, starts, ends = self._aliased.encode(text)
        crossed = []
        for opening in openings:
            before = bisect_left(starts, opening) - 1
            if before >= 0 and ends[before] > opening and OPEN not in text[starts[before] : opening]:
                crossed.append(opening)
        return self._aliased.encode(text, crossed) if crossed else (ids, starts, ends)

    def _answer(self, text: str, start: int, end: int) -> "_Answer":
        if not text.startswith(self._closing, end):
            raise DataError("the chat template writes inconsistent end-of-turn tokens: this answer ends differently")
        return _Answer(self._opening(text, start), end + len(self._closing))

    def _opening(self, text: str, start: int) -> int:
        """Returns the beginning, whitespace included, of an answer whose text begins at `start`."""
        return start - len(self._blanks) if text.endswith(self._blanks, 0, start) else start

    @cached_property
    def _blanks(self) -> str:
        return self.template.before_answers()

    @cached_property
    def _closing(self) -> str:
        end_token = re.compile(rf"\s*(?:{self._aliased.special.pattern})")
        return self._aliased.hide(self.template.after_answers(end_token))

    def _content(self, message: Message) -> str:
        """Returns a message's text, with the image token's alias for an image part."""
        texts = []
        for part in parts_of(message):
            if part["type"] == "image":
                if message["role"] == "assistant":
                    raise DataError("an answer contains an image, and the model can only generate text")
                texts.append(self._image_of(part.get(SIZE)))
            else:
                texts.append(check_text(part["text"]))
        return "".join(texts)

    def _image_of(self, size: Size | None) -> str:
        """Returns the text for an image: the image token's alias, once per tile."""
        return self._image if self.tiling is None or size is None else self.tiling.text(size, self._image)

    def _expand(self, values: list[int], ids: list[int]) -> list[int]:
        """Repeats the values at image tokens `tokens_per_image` times."""
        expanded: list[int] = []
        for value, i in zip(values, ids, strict=True):
            if i == self.image_token_id:
                expanded += [value] * self.tokens_per_image
            else:
                expanded.append(value)
        return expanded
