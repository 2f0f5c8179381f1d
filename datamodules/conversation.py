"""Conversations and captions as token ids and labels, with the tokenizer's own chat template, in one pass.

The template is rendered with sentinels in place of the contents; then the contents are put in, the whole string is
tokenised once, and the offsets say which tokens an answer became. So nothing is assumed about a template but that it
repeats contents unchanged and ends an answer with a special token.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
from tokenizers import Tokenizer, processors

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX

Message = dict[str, Any]
"""{"role": one of ROLES, "content": str, or a list of {"type": "image"} and {"type": "text", "text": str}}"""

ROLES = ("system", "user", "assistant")


def check_messages(messages: Any) -> str:
    """What is wrong with the `messages` of a record, in a few words; empty where nothing is."""
    if not isinstance(messages, list) or not messages:
        return "no messages"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"message {number} has no role of {', '.join(ROLES)}"
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list) or not all(_is_part(part) for part in content):
            return f"message {number} has content that is neither text nor a list of image and text parts"
    return ""


def image_parts(messages: Iterable[Message]) -> int:
    """How many images the messages speak of."""
    return sum(part["type"] == "image" for message in messages for part in _parts(message))


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


class ConversationEncoder:
    """Messages -> (token ids, labels), labels being the assistant's words and the token that ends each answer.

    Args:
        tokenizer: a fast transformers tokenizer; its chat template is needed for `encode` and `prompt` only.
        image_token_id: the special token that stands in the ids `tokens_per_image` times for every image part.

    Raises:
        ConfigError: the tokenizer is not a fast one, or `image_token_id` is not one of its special tokens.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, tokens_per_image: int) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(f"{tokenizer.name_or_path or 'the tokenizer'} is not a fast tokenizer: it has no offsets")
        special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if image_token_id not in special.values():
            raise ConfigError(f"the image token {image_token_id} is not a special token of the tokenizer")
        self.tokenizer, self.image_token_id, self.tokens_per_image = tokenizer, image_token_id, tokens_per_image
        self._special_ids = frozenset(special.values())
        self._special = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)))
        self._image = tokenizer.convert_ids_to_tokens(image_token_id)
        self._rendered: dict[tuple[str, ...], list[str]] = {}
        self._fast = plain_backend(tokenizer, ends=False)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Ids and labels of a whole conversation; IGNORE_INDEX where a position is not supervised.

        Raises:
            ConfigError: the template is missing, alters contents or has no end token after an answer.
            DataError: a content holds a special token's text, or an answer's ends are not ends of tokens.
        """
        text, spans = self._text(messages, generate=False)
        encoding = self._fast.encode(text, add_special_tokens=False)
        ids, starts = encoding.ids, _clean_starts(encoding.offsets)
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in spans:
            first, last = starts.get(start), starts.get(end)
            if first is None or last is None:
                raise DataError("an answer does not begin and end where tokens do, so it can't be supervised exactly")
            if ids[last] not in self._special_ids:
                raise ConfigError(
                    "the chat template ends an answer without a special token: it can't be learnt to stop"
                )
            labels[first : last + 1] = ids[first : last + 1]
        return self._expand(ids, labels)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages up to where the assistant's next answer begins; errors as in `encode`."""
        text, _ = self._text(messages, generate=True)
        ids = self._fast.encode(text, add_special_tokens=False).ids
        return self._expand(ids, ids)[0]

    def caption(self, text: str, images: int = 1) -> tuple[list[int], list[int]]:
        """Plain style: the first token (where the tokenizer has one), the images, then the caption and the end token.

        Ids and labels; caption and end token are supervised. Raises DataError for a special token's text in it.
        """
        self._refuse_special(text)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if eos is None:
            raise ConfigError("the tokenizer has no eos_token to end a caption with")
        head = ([] if bos is None else [bos]) + [self.image_token_id] * (self.tokens_per_image * images)
        tail = [*self._fast.encode(text, add_special_tokens=False).ids, eos]
        return head + tail, [IGNORE_INDEX] * len(head) + tail

    def check_template(self) -> None:
        """Raises ConfigError where the tokenizer's chat template can't be used for training."""
        self.encode([{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}])

    def _text(self, messages: Sequence[Message], generate: bool) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as one string, an image as one image token, and where in it the assistant's contents are."""
        roles = tuple(message["role"] for message in messages)
        pieces = self._pieces(roles, generate)
        text, spans = pieces[0], []
        for message, piece in zip(messages, pieces[1:], strict=True):
            content = self._content(message)
            if message["role"] == "assistant":
                spans.append((len(text), len(text) + len(content)))
            text += content + piece
        return text, spans

    def _content(self, message: Message) -> str:
        words = []
        for part in _parts(message):
            if part["type"] == "image":
                if message["role"] == "assistant":
                    raise DataError("an answer holds an image, which can't be learnt to write")
                words.append(self._image)
            else:
                self._refuse_special(part["text"])
                words.append(part["text"])
        return "".join(words)

    def _refuse_special(self, text: str) -> None:
        match = self._special.search(text)
        if match:
            raise DataError(f"the text holds '{match[0]}', a special token of the tokenizer")

    def _pieces(self, roles: tuple[str, ...], generate: bool) -> list[str]:
        """What the template writes before, between and after the contents; it depends on the roles alone."""
        known = (*roles, "generate") if generate else roles
        if known not in self._rendered:
            if self.tokenizer.chat_template is None:
                raise ConfigError(f"the tokenizer {self.tokenizer.name_or_path} has no chat template")
            sentinels = [f"\N{SYMBOL FOR START OF TEXT}{i}\N{SYMBOL FOR END OF TEXT}" for i in range(len(roles))]
            messages = [{"role": role, "content": mark} for role, mark in zip(roles, sentinels, strict=True)]
            try:
                rest = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
            except jinja2.TemplateError as error:
                raise DataError(f"the chat template refuses the roles {', '.join(roles)}: {error}") from None
            pieces = []
            for mark in sentinels:
                piece, found, rest = rest.partition(mark)
                if not found or mark in rest:
                    raise ConfigError("the chat template leaves out, repeats or reorders contents: it can't be masked")
                pieces.append(piece)
            self._rendered[known] = [*pieces, rest]
        return self._rendered[known]

    def _expand(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Every image token `tokens_per_image` times, with its label."""
        out_ids: list[int] = []
        out_labels: list[int] = []
        for i, label in zip(ids, labels, strict=True):
            times = self.tokens_per_image if i == self.image_token_id else 1
            out_ids += [i] * times
            out_labels += [label] * times
        return out_ids, out_labels


def _clean_starts(offsets: list[tuple[int, int]]) -> dict[int, int]:
    """Character -> the token that begins with it, where no token before reaches over that character."""
    starts: dict[int, int] = {}
    reached = 0
    for token, (start, end) in enumerate(offsets):
        # Tokens that are parts of one character share its place; only the first of them begins there.
        if end > start >= reached:
            starts[start] = token
        reached = max(reached, end)
    return starts


def _parts(message: Message) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
