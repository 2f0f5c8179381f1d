"""A tokenizer that distinguishes special tokens from text with the same characters."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from fvl_lightning.core.errors import ConfigError, DataError, first_line

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Two Unicode noncharacters, used only in the aliases of special tokens, since ordinary text may not contain them."""
BREAK = f"{OPEN}{CLOSE}"
"""A special token that is removed after tokenising, so that no token spans its position."""
_ALIAS = re.compile(f"{OPEN}([0-9]+){CLOSE}")


def plain_backend(tokenizer: Any, ends: bool) -> Tokenizer:
    """Copies the backend of a fast tokenizer, without the padding and truncation of its last call.

    With `ends` False the copy also has no post-processor: it adds no tokens around a text, and does not trim whitespace
    from offsets, which would hide the token that a blank belongs to.

    Raises:
        DataError: the tokenizer was read from a damaged file, and its parts do not fit each other.
    """
    try:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"the tokenizer in {tokenizer.name_or_path} is damaged ({first_line(error)})") from None
    backend.no_padding()
    backend.no_truncation()
    if not ends:
        backend.post_processor = processors.Sequence([])
    return backend


class AliasedTokenizer:
    """A tokenizer whose special tokens have aliases that no text can contain.

    A special token is recognised by its alias only. Everything else is the original tokenizer's behaviour in one pass
    over the whole text: the whitespace that a special token absorbs, the prefix of the text after one, and tokens that
    span template and content.

    Args:
        backend: the original tokenizer, without a post-processor that trims offsets.
        unknown: the id of the unknown token, which any text may contain; None where there is none.

    Raises:
        ConfigError: the tokenizer's ids have gaps, so that aliases cannot be distinguished from its vocabulary.
    """

    def __init__(self, backend: Tokenizer, unknown: int | None) -> None:
        state = json.loads(backend.to_str())
        added = state["added_tokens"]
        special = {token["content"]: token["id"] for token in added if token["special"]}
        self.aliases = {i: f"{OPEN}{i}{CLOSE}" for i in special.values()}
        self.special = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)))
        self._ids, self._names = special, {i: name for name, i in special.items()}
        for token in added:
            if token["special"]:
                token["content"] = self.aliases[token["id"]]
        self._backend = Tokenizer.from_str(json.dumps(state))
        self._backend.add_special_tokens([AddedToken(BREAK, normalized=False, special=True)])
        # An alias has another id, and the ids of other tokens may move: id in this backend -> id in the tokenizer.
        self._numbers = {self._number(token["content"]): token["id"] for token in added}
        self._break = self._number(BREAK)
        self._control = {number for number, i in self._numbers.items() if i in self.aliases} | {self._break}
        self._refused = set(special.values()) - self._numbers.keys() - {unknown}

    def hide(self, text: str) -> str:
        """Replaces the special tokens in the template's own text by their aliases."""
        return self.special.sub(lambda match: self.aliases[self._ids[match[0]]], text)

    def encode(self, text: str, breaks: Sequence[int] = ()) -> tuple[list[int], list[int], list[int]]:
        """Returns (ids, starts, ends): token ids, and the offsets in `text` where each token begins and ends.

        Offsets never decrease; tokens of one character share its offsets.

        Args:
            text: a text with aliases.
            breaks: sorted offsets in `text` that no token may span.

        Raises:
            ConfigError: the tokenizer misses a special token of the template.
            DataError: the tokenizer makes a special token of ordinary text.
        """
        cuts = [0, *breaks, len(text)]
        broken = BREAK.join(text[start:end] for start, end in pairwise(cuts))
        encoding = self._backend.encode(broken, add_special_tokens=False)
        numbers = encoding.ids
        refused = self._refused.intersection(numbers)
        if refused:
            token = next(token for token, i in self._ids.items() if i in refused)
            raise DataError(f"the text contains '{token}', which this tokenizer cannot encode as ordinary text")
        if sum(number in self._control for number in numbers) != broken.count(OPEN):
            raise ConfigError(
                "the tokenizer does not recognise its special tokens after other text; add them with `normalized=False`"
            )
        ids, starts, ends, inserted = [], [], [], 0
        for number, (start, end) in zip(numbers, encoding.offsets, strict=True):
            if number == self._break:
                inserted += len(BREAK)
                continue
            ids.append(self._numbers.get(number, number))
            starts.append(start - inserted)
            ends.append(end - inserted)
        return ids, starts, ends

    def show(self, text: str) -> str:
        """Replaces the aliases in a text by the special tokens' own names."""
        return _ALIAS.sub(lambda match: self._names[int(match[1])], text)

    def _number(self, name: str) -> int:
        """Returns the id of an added token in this backend."""
        number = self._backend.token_to_id(name)
        assert number is not None  # each was added before
        if self._backend.model.id_to_token(number) not in (None, name):
            raise ConfigError("the tokenizer's ids have gaps, so that special tokens cannot be distinguished from text")
        return number



def check_text(text: str) -> str:
    """Returns a text that can be encoded; DataError for any other."""
    if OPEN in text:
        raise DataError(f"the text holds U+{ord(OPEN):X}, which is no character and cannot be encoded")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text holds half a character (a lone surrogate) and cannot be encoded") from None
    return text
