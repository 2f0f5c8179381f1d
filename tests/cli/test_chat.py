"""`fvl chat` over a pipe: commands, several turns, mistakes that do not end it, and Ctrl-C."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fvl_lightning.cli import chat as module
from fvl_lightning.inference.conversation import Conversation
from tests.conftest import Run

Said = Callable[..., list[str]]
WHOLE = "[b]whole␛"
"""What a terminal sees of it: no markup, no escape."""


@pytest.fixture
def said(asked: Path, tmp_path: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> Said:
    """(lines, *words) -> the lines that `fvl chat` writes to these lines of input."""
    (tmp_path / "model").symlink_to(asked / "model")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")

    def run(lines: list[str], *words: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        done = fvl_here(tmp_path, "chat", "model", "--max-tokens", "4", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """(messages before, pictures with it, text) of what is asked; answers name their number."""
    seen: list[tuple[int, int, str]] = []

    def say(self: Conversation, text: str) -> object:
        seen.append((len(self.messages), len(self.pictures), text))
        self.pictures, self.messages = [], [*self.messages, {"role": "user"}, {"role": "assistant"}]

        def pieces() -> object:
            yield f"answer {len(seen)}, "
            if text == "stop":
                raise KeyboardInterrupt
            yield "[b]whole\x1b"

        return pieces()

    monkeypatch.setattr(Conversation, "say", say)
    return seen


def test_pictures_commands_and_turns(said: Said, asked_for: list[tuple[int, int, str]]) -> None:
    lines = said(
        ["what is it?", "/image a.png", "/image a.png", "  and now?  ", "", "again", "/clear", "new", "/quit", "never"],
        "--image", "a.png",
    )
    assert asked_for == [(0, 1, "what is it?"), (2, 2, "and now?"), (4, 0, "again"), (0, 0, "new")]
    assert lines == [
        f"answer 1, {WHOLE}",
        "1 picture for the next message",
        "2 pictures for the next message",
        f"answer 2, {WHOLE}",
        f"answer 3, {WHOLE}",
        "a new conversation",
        f"answer 4, {WHOLE}",
    ]


def test_a_mistake_does_not_end_it(said: Said, asked_for: list[tuple[int, int, str]]) -> None:
    lines = said(["/image", "/image no.png", "/imag a.png", "/help", "/2 is a half?"])
    assert lines[0] == "error: /image needs the path of a picture"
    assert lines[1] == "error: no image no.png"
    assert lines[2].startswith("error: chat: unknown command '/imag'")
    assert lines[2].endswith("did you mean '/image'?")
    assert [line.split()[0] for line in lines[3:8]] == ["/image", "/adapter", "/clear", "/help", "/quit"]
    assert asked_for == [(0, 0, "/2 is a half?")]


def test_ctrl_c_stops_the_answer_and_not_the_program(said: Said, asked_for: list[tuple[int, int, str]]) -> None:
    assert said(["stop", "go on"]) == ["answer 1,  (stopped)", f"answer 2, {WHOLE}"]
    assert asked_for == [(0, 0, "stop"), (2, 0, "go on")]


def test_ctrl_c_at_the_prompt_says_how_to_leave(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter([KeyboardInterrupt, "/help", EOFError])

    def type_line() -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(module, "input", type_line, raising=False)
    assert said([])[:3] == ["", "Ctrl-D or /quit ends", "/image <path>    show a picture with the next message"]


def test_the_model_answers_and_too_much_is_one_sentence(said: Said, asked: Path, fvl_here: Run) -> None:
    lines = said(["how many?", "many " * 600, "how many?"], "--image", "a.png")
    assert len(lines) == 3
    assert "the model has 512 positions for prompt and answer" in lines[1]
    once = fvl_here(asked, "chat", "model", "--top-p", "2")
    assert (once.returncode, once.stderr) == (2, "error: --top-p: a probability above 0, at most 1, not 2\n")


def test_the_answer_is_that_of_generate(said: Said, tmp_path: Path, fvl_here: Run) -> None:
    question = "what colour is it?"
    single = fvl_here(tmp_path, "generate", "model", "--image", "a.png", "--prompt", question, "--max-tokens", "4")
    assert said([question], "--image", "a.png") == single.stdout.splitlines()
