"""The engine of a tokenizer, made to tell special tokens from texts that look like them."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer

from fvl_lightning.core.errors import ConfigError, DataError

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Two of Unicode's noncharacters: in the names of special tokens only, since no text for interchange may hold them."""
BREAK = f"{OPEN}{CLOSE}"
"""A special token that becomes none: no token reaches from one side of it to the other."""
_ALIAS = re.compile(f"{OPEN}([0-9]+){CLOSE}")


class Engine:
    """A tokenizer's engine in which special tokens have other names, their aliases, that no text can hold.

    What is control is so told by the names alone. All else about tokenising is the tokenizer's own, in one pass over
    the whole text: which blanks a special token takes with it, what is put in front of the text behind one, and which
    characters of template and content are one token.

    Args:
        backend: the engine to start from; with no post-processor that trims offsets.
        unknown: the id of the unknown token, which any text may hold; None where there is none.

    Raises:
        ConfigError: the engine numbers tokens so that the aliases can't be told from its vocabulary.
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
        # Under another name a token has another number, and others may move: number in this engine -> the tokenizer's.
        self._numbers = {self._number(token["content"]): token["id"] for token in added}
        self._break = self._number(BREAK)
        self._control = {number for number, i in self._numbers.items() if i in self.aliases} | {self._break}
        self._refused = set(special.values()) - self._numbers.keys() - {unknown}

    def hide(self, text: str) -> str:
        """The template's own words with its special tokens under their aliases."""
        return self.special.sub(lambda match: self.aliases[self._ids[match[0]]], text)

    def encode(self, text: str, breaks: Sequence[int] = ()) -> tuple[list[int], list[int], list[int]]:
        """(ids, starts, ends): token ids of the tokenizer, and the characters of `text` each token begins and ends at.

        Neither ever decreases; parts of one character share its place.

        Args:
            breaks: places in `text`, in their order, over which no token may reach.

        Raises:
            ConfigError: a special token of the template is not found where it stands.
            DataError: a special token came of the words of a text.
        """
        cuts = [0, *breaks, len(text)]
        broken = BREAK.join(text[start:end] for start, end in pairwise(cuts))
        encoding = self._backend.encode(broken, add_special_tokens=False)
        numbers = encoding.ids
        refused = self._refused.intersection(numbers)
        if refused:
            token = next(token for token, i in self._ids.items() if i in refused)
            raise DataError(f"the text holds '{token}', which this tokenizer can't take for mere words")
        if sum(number in self._control for number in numbers) != broken.count(OPEN):
            raise ConfigError("the tokenizer does not find its special tokens behind a word (are they `normalized`?)")
        ids, starts, ends, inserted = [], [], [], 0
        for number, (start, end) in zip(numbers, encoding.offsets, strict=True):
            if number == self._break:
                inserted += len(BREAK)
                continue
            ids.append(self._numbers.get(number, number))
            starts.append(start - inserted)
            ends.append(end - inserted)
        return ids, starts, ends

    def shown(self, text: str) -> str:
        """The text with the special tokens under their own names."""
        return _ALIAS.sub(lambda match: self._names[int(match[1])], text)

    def _number(self, name: str) -> int:
        """The number of an added token in this engine."""
        number = self._backend.token_to_id(name)
        assert number is not None  # each was added before
        if self._backend.model.id_to_token(number) not in (None, name):
            raise ConfigError("the tokenizer's ids have gaps, where its special tokens can't be told from words")
        return number


def checked_text(text: str) -> str:
    """The text, where an engine can take it; DataError otherwise."""
    if OPEN in text:
        raise DataError(f"the text holds U+{ord(OPEN):X}, which is no character and can't be encoded")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text holds half a character (a lone surrogate) and can't be encoded") from None
    return text
