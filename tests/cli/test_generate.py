"""`fvl generate`: one question, a folder, a file; resumed, refused, and told line by line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.sources.row_files import MAX_ROW_BYTES
from fvl_lightning.core.terminal import visible
from tests.conftest import ONE_THREAD, Run

WORDS = ("--max-tokens", "5")


@pytest.fixture
def folder(asked: Path, tmp_path: Path) -> Path:
    """A working folder with two models of the same weights, three pictures and a file of questions."""
    for name in ("model", "runs"):
        (tmp_path / name).symlink_to(asked / name)
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40 + number, 30), colour).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "outside.png").symlink_to(tmp_path / "pictures" / "0.png")
    write(tmp_path, ROWS)
    return tmp_path


PART: dict[str, Any] = {"type": "image"}
ROWS: list[dict[str, Any]] = [
    {"id": "a", "image": "pictures/0.png", "prompt": "what colour is it?", "source": "mine"},
    {"images": ["pictures/1.png", "pictures/2.png"], "prompt": "how many?"},
    {
        "image": "pictures/2.png",
        "messages": [
            {"role": "user", "content": [PART, {"type": "text", "text": "what is it?"}]},
            {"role": "assistant", "content": "a square"},
            {"role": "user", "content": "what colour?"},
        ],
    },
    {"prompt": "how are you?"},
    {"id": 17, "image": "pictures/1.png", "prompt": "why?"},
]


def write(folder: Path, rows: list[Any], name: str = "questions.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder: Path, name: str = "answers.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def from_file(output: str = "answers.jsonl", model: str = "model") -> tuple[str, ...]:
    return ("generate", model, "--input", "questions.jsonl", "--output", output, *WORDS)


def test_every_row_is_answered_as_it_would_be_alone(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, *from_file())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5 rows, 0 without an answer: answers.jsonl\n"
    answers = read(folder)
    assert [row["id"] for row in answers] == ["a", 2, 3, 4, 17]
    assert answers[0] == {
        "id": "a", "images": ["pictures/0.png"], "prompt": "what colour is it?", "answer": answers[0]["answer"]
    }
    assert answers[2]["messages"] == ROWS[2]["messages"]
    assert fvl_here(folder, *from_file("alone.jsonl", "runs/tiny"), "--batch-size", "1").returncode == 0
    assert read(folder, "alone.jsonl") == answers
    for row in (0, 1):
        pictures = [word for name in answers[row]["images"] for word in ("--image", name)]
        single = fvl_here(folder, "generate", "model", *pictures, "--prompt", ROWS[row]["prompt"], *WORDS)
        assert single.stdout == f"{visible(answers[row]['answer'])}\n", single.stderr


@pytest.mark.slow
def test_one_question_is_drawn_anew_or_by_a_seed(folder: Path, fvl_here: Run) -> None:
    words = ("generate", "model", "--image", "pictures/0.png", "--prompt", "why?", *WORDS, "--temperature", "3")
    assert len({fvl_here(folder, *words).stdout for _ in range(3)}) == 3
    assert len({fvl_here(folder, *words, "--seed", "3").stdout for _ in range(3)}) == 1


def test_a_folder_is_asked_picture_by_picture(folder: Path, fvl_here: Run) -> None:
    (folder / "pictures" / "notes.txt").write_text("no picture")
    (folder / "pictures" / "3.PNG").write_bytes(b"broken")
    words = ("--images", "pictures", "--prompt", "why?", "--output", "a.jsonl", *WORDS)
    done = fvl_here(folder, "generate", "model", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 rows, 1 without an answer: a.jsonl\n"
    assert [(row["id"], row["images"], row["prompt"]) for row in read(folder, "a.jsonl")] == [
        (name, [name], "why?") for name in ("0.png", "1.png", "2.png", "3.PNG")
    ]
    assert "picture 4: 3.PNG: not a readable PNG" in done.stderr


BAD: list[tuple[Any, str]] = [
    ({"image": "\x1b[2J.png", "prompt": "c"}, "missing image: \x1b[2J.png"),
    ("{", "no valid JSON"),
    ("[1]", "expected an object, found list"),
    ('{"prompt": "' + "x" * MAX_ROW_BYTES + '"}', f"the row is longer than the limit of {MAX_ROW_BYTES} bytes"),
    ({"image": "pictures/0.png"}, "expected prompt or messages, and image or images, found image"),
    ({"image": "a", "images": ["b"], "prompt": "c"}, "found image, images, prompt"),
    ({"image": 3, "prompt": "c"}, "images are names of files, found [3]"),
    ({"images": "pictures/0.png", "prompt": "c"}, "images are names of files, found 'pictures/0.png'"),
    ({"prompt": ["c"]}, "prompt is a text, found list"),
    ({"messages": []}, "no messages"),
    ({"messages": [{"role": "assistant", "content": "c"}]}, "the last message has role assistant"),
    ({"image": "pictures/0.png", "messages": [{"role": "user", "content": "c"}]}, "0 image parts for 1 images"),
    ({"image": "nope.png", "prompt": "c"}, "missing image: nope.png"),
    ({"image": "../outside.png", "prompt": "c"}, "unsafe path: ../outside.png"),
    ({"image": "/etc/hostname", "prompt": "c"}, "unsafe path: /etc/hostname"),
    ({"image": "questions.jsonl", "prompt": "c"}, "questions.jsonl: not a readable PNG"),
    ({"image": "pictures/0.png", "prompt": "c " * 600}, "the model has 512 positions"),
    ('{"prompt": "\\ud800"}', "half a character"),
]


def test_what_is_wrong_with_a_row_is_in_its_row_and_stops_nobody(folder: Path, fvl_here: Run) -> None:
    write(folder, ["", ROWS[0], *(row for row, _ in BAD), ROWS[4]])
    done = fvl_here(folder, *from_file(), "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    answers = read(folder)
    assert ["answer" in row for row in answers] == [True, *[False] * len(BAD), True]
    assert [row["id"] for row in answers[1:-1]] == list(range(3, 3 + len(BAD)))
    for row, (_, sentence) in zip(answers[1:-1], BAD, strict=True):
        assert sentence in row["error"]
    assert done.stdout == f"{len(BAD) + 2} rows, {len(BAD)} without an answer: answers.jsonl\n"
    told = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == [f"line {number}" for number in range(3, 8)]
    assert "\x1b" not in done.stderr, "a terminal would obey"
    assert told[-1].endswith("; further ones are in the output only")


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, asked: Path, fvl_here: Run) -> None:
    secret = asked / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    (folder / "pictures" / "link.png").symlink_to(secret)
    write(folder, [{"image": "pictures/link.png", "prompt": "c"}])
    assert fvl_here(folder, *from_file()).returncode == 0
    assert "unsafe path" in read(folder)[0]["error"]


# Going on.


@pytest.mark.slow
def test_it_goes_on_behind_the_last_whole_row(folder: Path, fvl_here: Run) -> None:
    assert fvl_here(folder, *from_file("whole.jsonl")).returncode == 0
    whole = (folder / "whole.jsonl").read_bytes()
    settings = (folder / "whole.jsonl.settings.json").read_bytes()
    for kept in (0, 1, 30, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        (folder / "answers.jsonl").write_bytes(whole[:kept])
        (folder / "answers.jsonl.settings.json").write_bytes(settings)
        done = fvl_here(folder, *from_file(model="runs/tiny"), "--batch-size", "2")
        assert done.returncode == 0, done.stderr
        assert (folder / "answers.jsonl").read_bytes() == whole
        there = whole[:kept].count(b"\n")
        assert done.stdout.startswith(f"5 rows, {there} of them before, " if there else "5 rows, 0 without")


def test_failed_rows_are_counted_again(folder: Path, fvl_here: Run) -> None:
    write(folder, ["{", ROWS[3]])
    first = fvl_here(folder, *from_file())
    again = fvl_here(folder, *from_file())
    assert first.stdout == "2 rows, 1 without an answer: answers.jsonl\n"
    assert again.stdout == "2 rows, 2 of them before, 1 without an answer: answers.jsonl\n"


def test_drawn_answers_are_the_same_after_a_stop(folder: Path, fvl_here: Run) -> None:
    drawn = ("--temperature", "3", "--top-p", "0.9", "--seed", "4", "--batch-size", "2")
    assert fvl_here(folder, *from_file(), *drawn).returncode == 0
    whole = (folder / "answers.jsonl").read_bytes()
    (folder / "answers.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert fvl_here(folder, *from_file(), *drawn).returncode == 0
    assert (folder / "answers.jsonl").read_bytes() == whole
    assert fvl_here(folder, *from_file("other.jsonl"), *drawn[:-3], "5", *drawn[-2:]).returncode == 0
    assert (folder / "other.jsonl").read_bytes() != whole


def test_answers_of_something_else_are_never_mixed(folder: Path, fvl_here: Run) -> None:
    assert fvl_here(folder, *from_file()).returncode == 0
    before = (folder / "answers.jsonl").read_bytes()

    def refused(*words: str) -> str:
        done = fvl_here(folder, *words)
        assert done.returncode == 2, done.stdout
        assert done.stderr.count("\n") == 1
        assert (folder / "answers.jsonl").read_bytes() == before
        return done.stderr

    assert "answers of another max_tokens (5, now 6)" in refused(*from_file()[:-1], "6")
    assert "answers of another beams (1, now 2)" in refused(*from_file(), "--beams", "2")
    write(folder, ROWS[:-1])
    assert "answers of another input (" in refused(*from_file())
    (folder / "answers.jsonl.settings.json").write_text("{}")
    assert "answers of another model (None, now " in refused(*from_file())
    (folder / "answers.jsonl.settings.json").write_text("{")
    assert "settings.json could not be read: " in refused(*from_file())
    (folder / "answers.jsonl.settings.json").unlink()
    assert "without its answers.jsonl.settings.json" in refused(*from_file())


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(folder: Path, fvl_here: Run) -> None:
    write(folder, [ROWS[0]] * 400)
    command = [sys.executable, "-m", "fvl_lightning", *from_file(), "--batch-size", "1", "--beams", "4"]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output = folder / "answers.jsonl"
    while process.poll() is None and (not output.exists() or output.stat().st_size < 500):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, process.communicate()
    assert process.stderr is not None
    assert "what was saved is kept" in process.stderr.read()
    done = output.read_bytes().count(b"\n")
    assert 0 < done < 400
    again = fvl_here(folder, *from_file(), "--batch-size", "50", "--beams", "4")
    assert again.stdout == f"400 rows, {done} of them before, 0 without an answer: answers.jsonl\n"
    assert len({row["answer"] for row in read(folder)}) == 1


MISTAKES = [
    (("--prompt", "x"), "name one of --image (a picture), --images (a folder), --input (JSON Lines), found none of"),
    (("--image", "a.png", "--images", "pictures", "--prompt", "x"), "found --image and --images"),
    (("--image", "pictures/0.png"), "--image needs --prompt"),
    (("--image", "pictures/0.png", "--prompt", "x", "--output", "o"), "--image goes without --output"),
    (("--images", "pictures", "--prompt", "x"), "--images needs --output"),
    (("--images", "picture", "--prompt", "x", "--output", "o"), "did you mean 'pictures'?"),
    (("--images", "runs", "--prompt", "x", "--output", "o"), "no picture in runs"),
    (("--input", "questions.jsonl", "--prompt", "x", "--output", "o"), "--input goes without --prompt"),
    (("--input", "question.jsonl", "--output", "o"), "question.jsonl cannot be read"),
    (("--input", "questions.jsonl", "--output", "nowhere/o"), "--output: nowhere/o cannot be written"),
    (("--image", "pictures/0.png", "--prompt", "x", "--top-p", "0"), "--top-p: a probability above 0, at most 1"),
    (("--image", "nope.png", "--prompt", "x"), "no image nope.png"),
    (("--image", "pictures/0.png", "--prompt", "x " * 600), "the model has 512 positions"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=lambda value: " ".join(value)[:40] if value else "")
def test_a_mistake_is_one_sentence(words: tuple[str, ...], sentence: str, folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, "generate", "model", *words)
    assert done.returncode == 2, done.stdout
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(folder.glob("o*.jsonl*"))
