"""Finds the text that any chat template writes around the contents of a conversation.

The template is rendered twice: once with the contents, which gives the text; and once with marks in their place, which
show where each content is and whether the template trims it. Both renderings must match exactly, or the conversation
is refused; so a template that repeats, reorders or rewrites contents never gives a wrong mask.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from datamodules.encoding.template_sandbox import render_template
from fvl_lightning.core.chat_date import dated
from fvl_lightning.core.errors import ConfigError, DataError

BLANK = "\N{EM SPACE}"
"""Whitespace that no template writes itself: where it is missing next to a mark, the template has trimmed it."""

MARK = re.compile(f"({BLANK}?)\N{SYMBOL FOR START OF TEXT}([0-9]+)\N{SYMBOL FOR END OF TEXT}({BLANK}?)")

TRIMS: dict[tuple[bool, bool], Callable[[str], str]] = {
    (True, True): str,
    (True, False): str.rstrip,
    (False, True): str.lstrip,
    (False, False): str.strip,
}
"""(BLANK is left before the mark, BLANK is left after it) -> what the template does to a content."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template writes it.

    Attributes:
        pieces: the template's own text before the first content, between contents and after the last; one more than
            there are contents.
        trims: what the template does to each content. A message of whitespace only becomes empty; whitespace that the
            template writes for it is in the piece around it.
    """

    pieces: list[str]
    trims: list[Callable[[str], str]]

    def text(self, contents: Sequence[str]) -> str:
        """Returns the whole conversation with these contents."""
        filled = [self.pieces[0]]
        for content, trim, piece in zip(contents, self.trims, self.pieces[1:], strict=True):
            filled += [trim(content), piece]
        return "".join(filled)


class ChatTemplate:
    """The chat template of a transformers tokenizer; contents are always passed to it as text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def text(self) -> str:
        """The template with a fixed date in place of the clock; ConfigError where the tokenizer has no template."""
        if self.tokenizer.chat_template is None:
            raise ConfigError(f"the tokenizer {self.tokenizer.name_or_path} has no chat template")
        if isinstance(self.tokenizer.chat_template, dict) and "default" not in self.tokenizer.chat_template:
            names = ", ".join(self.tokenizer.chat_template)
            raise ConfigError(f"the tokenizer has named chat templates ({names}), but none is called default")
        return dated(self.tokenizer.get_chat_template())

    def render(self, roles: Sequence[str], contents: Sequence[str], generate: bool = False) -> Rendered:
        """Renders the template with these contents; `generate` adds the template's own generation prompt.

        Raises:
            ConfigError: the tokenizer has no chat template.
            DataError: the template refuses the roles, leaves a content out, or changes contents beyond trimming.
        """
        # A template may skip an empty message, or trim it together with its own text; the place of an empty content
        # does not matter, except for an answer, whose end is needed.
        marked = [i for i, role in enumerate(roles) if contents[i].strip() or role == "assistant"]
        marks = list(contents)
        for i in marked:
            marks[i] = f"{BLANK}\N{SYMBOL FOR START OF TEXT}{i}\N{SYMBOL FOR END OF TEXT}{BLANK}"
        split = MARK.split(self._apply(roles, marks, generate))
        if split[2::4] != [str(i) for i in marked]:
            raise DataError("the chat template leaves out, repeats or reorders contents: it cannot be masked")
        trims: list[Callable[[str], str]] = [_nothing] * len(roles)
        pieces = [""] * len(roles) + [split[-1]]
        for i, piece, before, after in zip(marked, split[0::4], split[1::4], split[3::4], strict=False):
            pieces[i], trims[i] = piece, TRIMS[bool(before), bool(after)]
        rendered = Rendered(pieces, trims)
        if rendered.text(contents) != self._apply(roles, contents, generate):
            raise DataError("the chat template rewrites a content, so that the answers cannot be located in its text")
        return rendered

    def before_answers(self) -> str:
        """Returns the whitespace that the assistant generates before the text of an answer.

        It is what the template writes between its generation prompt and the answer ("ASSISTANT:" and "ASSISTANT: red"
        differ by one space); where the generation prompt is another, the spaces in front of the answer.
        """
        prompt, opening, _ = self._around_one_answer()
        if opening.startswith(prompt) and not opening[len(prompt) :].strip():
            return opening[len(prompt) :]
        return opening[len(opening.rstrip(" ")) :]

    def after_answers(self, ending: re.Pattern[str]) -> str:
        """Returns what `ending` matches after an answer; ConfigError where it does not match."""
        end = ending.match(self._around_one_answer()[2])
        if end is None:
            raise ConfigError(
                "the chat template ends an answer without a special token, so that a model cannot learn to stop"
            )
        return end[0]

    def other_generation_prompt(self) -> tuple[str, str] | None:
        """Returns (template's, training's) generation prompt from their first difference on; None where they agree.

        A template's generation prompt may contain text that its answers lack (DeepSeek R1 opens a thought), or the
        other way round (Qwen3 writes an empty thought before an answer). Trailing whitespace is ignored.
        """
        prompt, opening, _ = self._around_one_answer()
        if opening.rstrip() == prompt.rstrip():
            return None
        same = next((i for i, (one, other) in enumerate(zip(prompt, opening, strict=False)) if one != other), None)
        same = min(len(prompt), len(opening)) if same is None else same
        return prompt[same:], opening[same:]

    def _around_one_answer(self) -> tuple[str, str, str]:
        """Returns a question with the generation prompt, and the text before and after an answer to that question."""
        prompt = self._apply(["user"], ["question"], generate=True)
        answered = self.render(["user", "assistant"], ["question", "answer"])
        return prompt, answered.pieces[0] + "question" + answered.pieces[1], answered.pieces[2]

    def _apply(self, roles: Sequence[str], contents: Sequence[str], generate: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            return render_template(
                self.text, messages, add_generation_prompt=generate, **self.tokenizer.special_tokens_map
            )
        except jinja2.TemplateError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the chat template refuses the roles {_some(roles)}: {reason}") from None


def _nothing(content: str) -> str:
    return ""


def _some(roles: Sequence[str]) -> str:
    return ", ".join(roles[:8]) + (" ..." if len(roles) > 8 else "")
