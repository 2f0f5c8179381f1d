"""LLaVA's conversations come out as they went in."""

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.sources.base import Refusal, Row
from datamodules.sources.json_rows import JsonChunk
from fvl_lightning.core.errors import ConfigError, DataError
from tests.datamodules.sources.conftest import SECRET
from tests.datamodules.sources.reading import PNG, read, reasons, source, talk, write_array, write_lines

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


ROWS = [
    talk("<image>\nWhat is it?", "A dog.", "Really?", "Yes. <3", id="000001", image="a.png", source="coco"),
    talk("Write <b>bold</b> text:\t\n ", " ok \n", id=7),
    talk("First <image> and <image>: which?", "Neither.", image=["sub/b.png", "a.png"], task_name="compare"),
    talk(
        "Describe.\n<image>", "A cat ü ☃", image="c.png", score=0.5, good=True, boxes=[[1, 2]], more={"a": 1}, no=None
    ),
    talk("<image>\n<image>", "<image>", image=["a.png", "c.png", "a.png"]),
    {"conversations": [{"from": "system", "value": "Be brief."}, *talk("Hi", "Hello")["conversations"]], "image": ""},
    talk("No picture", "Right", image=None, model="None"),
    talk("No picture", "Right", image=float("nan"), ratio=float("inf")),
]
EXPECTED = [
    Row(
        {
            "id": "000001",
            "source": "coco",
            "messages": [
                {"role": "user", "content": [IMAGE, text("\nWhat is it?")]},
                {"role": "assistant", "content": "A dog."},
                {"role": "user", "content": "Really?"},
                {"role": "assistant", "content": "Yes. <3"},
            ],
        },
        (PNG + b"a.png",),
    ),
    Row(
        {
            "id": 7,
            "messages": [
                {"role": "user", "content": "Write <b>bold</b> text:\t\n "},
                {"role": "assistant", "content": " ok \n"},
            ],
        }
    ),
    Row(
        {
            "task_name": "compare",
            "messages": [
                {"role": "user", "content": [text("First "), IMAGE, text(" and "), IMAGE, text(": which?")]},
                {"role": "assistant", "content": "Neither."},
            ],
        },
        (PNG + b"sub/b.png", PNG + b"a.png"),
    ),
    Row(
        {
            "score": 0.5,
            "good": True,
            "messages": [
                {"role": "user", "content": [text("Describe.\n"), IMAGE]},
                {"role": "assistant", "content": "A cat ü ☃"},
            ],
        },
        (PNG + b"c.png",),
    ),
    Row(
        {
            "messages": [
                {"role": "user", "content": [IMAGE, text("\n"), IMAGE]},
                {"role": "assistant", "content": [IMAGE]},
            ]
        },
        (PNG + b"a.png", PNG + b"c.png", PNG + b"a.png"),
    ),
    Row(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        }
    ),
    Row(
        {
            "model": "None",
            "messages": [{"role": "user", "content": "No picture"}, {"role": "assistant", "content": "Right"}],
        }
    ),
    Row({"messages": [{"role": "user", "content": "No picture"}, {"role": "assistant", "content": "Right"}]}),
]


@pytest.mark.parametrize("write", [write_array, write_lines])
def test_rows_come_out_exactly(tmp_path: Path, images: Path, write: Any) -> None:
    path = write(tmp_path / "rows.json", ROWS)
    assert read(source("llava_json", file=str(path), images=str(images))) == EXPECTED


def test_several_files_follow_each_other(tmp_path: Path, images: Path) -> None:
    write_lines(tmp_path / "b.jsonl", ROWS[:3])
    write_array(tmp_path / "a.json", ROWS[3:])
    files = [str(tmp_path / "b.jsonl"), str(tmp_path / "*.json")]
    assert read(source("llava_json", file=files, images=str(images))) == EXPECTED


def test_chunks_are_small_and_in_order(tmp_path: Path, images: Path) -> None:
    path = write_array(tmp_path / "rows.json", [talk(f"question {i}", "answer", id=i) for i in range(1000)])
    one = source("llava_json", file=str(path), images=str(images))
    chunks = list(one.chunks())
    assert len(chunks) > 4
    assert all(isinstance(chunk, JsonChunk) and len(chunk.spans) <= 256 for chunk in chunks)
    assert [row.record["id"] for row in read(one)] == list(range(1000))
    # Any chunk can be read without those before it.
    last = list(one.rows(chunks[-2]))
    assert [row.record["id"] for row in last] == [
        row.record["id"] for row in read(one)[(len(chunks) - 2) * len(chunks[0].spans) :][: len(last)]
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk("<image>", "yes", image="d.png"), "missing image"),
        (talk("<image>", "yes", image=["a.png", "d.png"]), "missing image"),
        (talk("<image>", "yes", image="../outside.png"), "unsafe path"),
        (talk("<image>", "yes", image="sub/../../images_beside/d.png"), "unsafe path"),
        (talk("<image>", "yes", image="link.png"), "unsafe path"),
        (talk("<image>", "yes", image="sub/linked/d.png"), "unsafe path"),
        (talk("<image>", "yes", image="/etc/hostname"), "unsafe path"),
        (talk("<image>", "yes", image=3), "bad image"),
        (talk("<image>", "yes", image=["a.png", None]), "bad image"),
        (talk("<image>", "yes", image={"bytes": "a.png"}), "bad image"),
        ({"image": "a.png"}, "no messages"),
        ({"conversations": []}, "no messages"),
        ({"conversations": "Hello"}, "no messages"),
        ({"conversations": ["Hello"]}, "bad messages"),
        ({"conversations": [{"from": "human"}]}, "bad messages"),
        ({"conversations": [{"from": "human", "value": 3}]}, "bad messages"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "bad messages"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "bad messages"),
        ({"conversations": [{"value": "x"}]}, "bad messages"),
        ("{", "bad JSON"),
        ("[1]", "bad JSON"),
    ],
)
def test_a_broken_row_is_refused_and_the_rest_goes_on(
    tmp_path: Path, images: Path, row: dict[str, Any] | str, reason: str
) -> None:
    (images / "link.png").symlink_to("../outside.png")
    (images / "sub").mkdir(exist_ok=True)
    (images / "sub" / "linked").symlink_to("../../images_beside")
    path = write_lines(tmp_path / "rows.jsonl", [talk("Hi", "Hello"), row, talk("Hi", "Hello")])
    rows = read(source("llava_json", file=str(path), images=str(images)))
    assert reasons(rows) == ["", reason, ""]
    assert SECRET not in repr(rows).encode()


def test_a_refusal_says_what_was_wrong(tmp_path: Path, images: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "bot", "value": "x"}]}]
    path = write_array(tmp_path / "rows.json", rows)
    detail = "turn 1 is from 'bot', expected one of human, gpt, system"
    assert read(source("llava_json", file=str(path), images=str(images))) == [Refusal("bad messages", detail)]


def test_an_answer_can_be_the_caption_too(tmp_path: Path, images: Path) -> None:
    rows = [talk("Describe it.\n<image>", "A dog.", image="a.png", caption="no"), talk("Describe it.", " ")]
    path = write_array(tmp_path / "rows.json", [*rows, {"conversations": [{"from": "human", "value": "Hi"}]}])
    found = read(source("llava_json", file=str(path), images=str(images), answer_as_caption=True))
    assert reasons(found) == ["", "no caption", "no caption"]
    assert isinstance(found[0], Row)
    assert found[0].record["caption"] == "A dog."
    assert found[0].record["messages"][1] == {"role": "assistant", "content": "A dog."}


def test_kinds_name_the_answers_or_the_row_is_refused(tmp_path: Path, images: Path) -> None:
    """Or scores could not be grouped by them, and `fvl evaluate` would be the first to say so."""
    kinds: list[Any] = [["greeting", "leave"], None, ["greeting"], ["greeting", 3], "greeting"]
    path = write_array(tmp_path / "rows.json", [talk("Hi", "Hello", "Bye", "Goodbye", kinds=one) for one in kinds])
    found = read(source("llava_json", file=str(path), images=str(images)))
    assert reasons(found) == ["", "", "bad record", "bad record", "bad record"]
    assert [row.record.get("kinds") for row in found[:2]] == [kinds[0], None]
    assert found[2].detail == "kinds must be a list of 2 names, one per answer"


def test_metadata_never_replaces_the_messages(tmp_path: Path, images: Path) -> None:
    path = write_array(tmp_path / "rows.json", [talk("Hi", "Hello", messages="none at all")])
    assert isinstance(read(source("llava_json", file=str(path), images=str(images)))[0].record["messages"], list)


def test_what_is_missing_is_told_before_a_row_is_read(tmp_path: Path, images: Path) -> None:
    path = write_array(tmp_path / "rows.json", ROWS)
    with pytest.raises(DataError, match=r"did you mean '.*/rows\.json'"):
        list(source("llava_json", file=str(tmp_path / "row.json"), images=str(images)).chunks())
    with pytest.raises(DataError, match=r"no folder .*/image with images; did you mean"):
        list(source("llava_json", file=str(path), images=str(tmp_path / "image")).chunks())
    with pytest.raises(ConfigError, match="file: expected a path"):
        source("llava_json", file=3, images=str(images))
    with pytest.raises(ConfigError, match="images"):
        source("llava_json", file=str(path))


def test_lone_surrogates_and_nul_are_left_to_those_who_write(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([talk("\ud800 and \0", "ok")]))
    rows = read(source("llava_json", file=str(path), images=str(images)))
    assert rows[0].record["messages"][0]["content"] == "\ud800 and \0"
