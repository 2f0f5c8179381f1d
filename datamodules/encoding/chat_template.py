"""What a tokenizer's chat template writes around the contents of a conversation, found without knowing the template.

The template is rendered twice: with the contents, which is the text; and with marks in their place, which says where in
that text each content is and whether the template trims it. Text and marks must agree to the letter, or the
conversation is refused; so a template that repeats, reorders or rewrites contents is never masked wrongly.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from fvl_lightning.core.chat_date import dated
from fvl_lightning.core.errors import ConfigError, DataError

BLANK = "\N{EM SPACE}"
"""Trimmed like any other blank, and written by no template itself: its absence beside a mark means trimming."""

MARK = re.compile(f"({BLANK}?)\N{SYMBOL FOR START OF TEXT}([0-9]+)\N{SYMBOL FOR END OF TEXT}({BLANK}?)")

TRIMS: dict[tuple[bool, bool], Callable[[str], str]] = {
    (True, True): str,
    (True, False): str.rstrip,
    (False, True): str.lstrip,
    (False, False): str.strip,
}
"""(the blank before the mark is left, the one behind it is) -> what the template does to a content."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template writes it.

    `pieces` is what the template writes before the first content, between contents and after the last, one more than
    there are contents; `trims` says for each content what the template makes of it. Of a message without words nothing
    is made: its blanks, where the template writes them, are in the piece around it.
    """

    pieces: list[str]
    trims: list[Callable[[str], str]]

    def text(self, contents: Sequence[str]) -> str:
        """The whole conversation with these contents."""
        filled = [self.pieces[0]]
        for content, trim, piece in zip(contents, self.trims, self.pieces[1:], strict=True):
            filled += [trim(content), piece]
        return "".join(filled)


class ChatTemplate:
    """The chat template of a transformers tokenizer; contents are always given to it as text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def text(self) -> str:
        """The template as it is rendered, with a day that is set where it asks for today's; ConfigError without one."""
        if self.tokenizer.chat_template is None:
            raise ConfigError(f"the tokenizer {self.tokenizer.name_or_path} has no chat template")
        if isinstance(self.tokenizer.chat_template, dict) and "default" not in self.tokenizer.chat_template:
            names = ", ".join(self.tokenizer.chat_template)
            raise ConfigError(f"the tokenizer has chat templates by name ({names}), and none is called default")
        return dated(self.tokenizer.get_chat_template())

    def render(self, roles: Sequence[str], contents: Sequence[str], generate: bool = False) -> Rendered:
        """The template with these contents; `generate` adds its own invitation to answer, if it has one.

        Raises:
            ConfigError: the tokenizer has no chat template.
            DataError: the template refuses the roles, leaves a content out, or does more to contents than trim them.
        """
        # A template may pass over an empty message or trim it with its own words, and no one needs to know where
        # nothing is; of an answer, however empty, the end is needed.
        marked = [i for i, role in enumerate(roles) if contents[i].strip() or role == "assistant"]
        marks = list(contents)
        for i in marked:
            marks[i] = f"{BLANK}\N{SYMBOL FOR START OF TEXT}{i}\N{SYMBOL FOR END OF TEXT}{BLANK}"
        found = MARK.split(self._apply(roles, marks, generate))
        if found[2::4] != [str(i) for i in marked]:
            raise DataError("the chat template leaves out, repeats or reorders contents: it can't be masked")
        trims: list[Callable[[str], str]] = [_nothing] * len(roles)
        pieces = [""] * len(roles) + [found[-1]]
        for i, piece, before, behind in zip(marked, found[0::4], found[1::4], found[3::4], strict=False):
            pieces[i], trims[i] = piece, TRIMS[bool(before), bool(behind)]
        rendered = Rendered(pieces, trims)
        if rendered.text(contents) != self._apply(roles, contents, generate):
            raise DataError("the chat template rewrites a content, so it can't be told where the answers are")
        return rendered

    def before_answers(self) -> str:
        """The blanks that the assistant writes before the words of an answer.

        They are those the template writes between its invitation to answer and the answer ("ASSISTANT:" and
        "ASSISTANT: red" differ by one); where its invitation is another, the spaces in front of the answer.
        """
        invited, opening, _ = self._around_one_answer()
        if opening.startswith(invited) and not opening[len(invited) :].strip():
            return opening[len(invited) :]
        return opening[len(opening.rstrip(" ")) :]

    def behind_answers(self, ending: re.Pattern[str]) -> str:
        """What the assistant writes behind an answer: what `ending` matches there; ConfigError where it does not."""
        end = ending.match(self._around_one_answer()[2])
        if end is None:
            raise ConfigError("the chat template ends an answer without a special token: it can't be learnt to stop")
        return end[0]

    def other_invitation(self) -> tuple[str, str] | None:
        """(its own, training's): what the template ends a prompt with, where training shows something else there.

        A template may invite with words that its answers lack (DeepSeek R1 opens a thought), or the other way round
        (Qwen3 writes an empty thought before an answer). None where both agree, but for blanks.
        """
        invited, opening, _ = self._around_one_answer()
        if opening.rstrip() == invited.rstrip():
            return None
        same = next((i for i, (one, other) in enumerate(zip(invited, opening, strict=False)) if one != other), None)
        same = min(len(invited), len(opening)) if same is None else same
        return invited[same:], opening[same:]

    def _around_one_answer(self) -> tuple[str, str, str]:
        """A question as the template asks it, and what it writes before and behind the answer to that question."""
        invited = self._apply(["user"], ["question"], generate=True)
        answered = self.render(["user", "assistant"], ["question", "answer"])
        return invited, answered.pieces[0] + "question" + answered.pieces[1], answered.pieces[2]

    def _apply(self, roles: Sequence[str], contents: Sequence[str], generate: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=generate
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses the roles {_some(roles)}: {error}") from None
        return str(text)


def _nothing(content: str) -> str:
    return ""


def _some(roles: Sequence[str]) -> str:
    return ", ".join(roles[:8]) + (" ..." if len(roles) > 8 else "")
