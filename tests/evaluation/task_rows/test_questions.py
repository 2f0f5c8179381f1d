"""Rows of Parquet files, JSON and shards become questions with images and references."""

import json
import pickle
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.storage.writer import ShardWriter
from fvl_lightning.core.errors import UserError
from fvl_lightning.evaluation.task_rows import images as row_images
from fvl_lightning.evaluation.task_rows.questions import TaskQuestions, read_questions
from fvl_lightning.evaluation.tasks.lookup import find_task


def png(colour: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, "PNG")
    return out.getvalue()


RED, BLUE, GREEN = (png(colour) for colour in ("red", "blue", "green"))


def as_cell(image: bytes) -> dict[str, Any]:
    return {"bytes": image, "path": None}


def save(path: Path, rows: list[dict[str, Any]], group: int = 2) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def questions(folder: Path, yaml: str, limit: int | None = None) -> TaskQuestions:
    (folder / "own.yaml").write_text(f"title: Own\n{yaml}", encoding="utf-8")
    return read_questions(find_task(folder / "own.yaml"), limit)


def text_of(message: Mapping[str, Any]) -> str:
    return "".join(part.get("text", "<image>") for part in message["content"])


ROWS = [
    {"image": as_cell(RED), "question": "what?", "answers": ["a", "b"], "n": 1, "topic": "x"},
    {"image": as_cell(BLUE), "question": "where?", "answers": ["c"], "n": 2, "topic": "y"},
    {"image": as_cell(RED), "question": "who?", "answers": ["d"], "n": 3, "topic": "x"},
]
YAML = r"""
data: {files: '*.parquet'}
fields: {answers: [answers], kind: topic, slices: [n]}
prompt: "{question}\nBrief."
"""


def test_parquet(tmp_path: Path) -> None:
    save(tmp_path / "b.parquet", ROWS[2:])
    save(tmp_path / "a.parquet", ROWS[:2])  # files are read by name, whenever they were written
    found = questions(tmp_path, YAML)
    first, second, third = found.questions
    assert text_of(first.messages[0]) == "<image>what?\nBrief."
    assert [question.images for question in found.questions] == [(0,), (1,), (0,)]  # equal pictures have one number
    assert (found.image(0), found.image(1)) == (RED, BLUE)
    assert first.reference.answers == ("a", "b")
    assert first.reference.row == {"question": "what?", "n": 1, "topic": "x"}
    assert (second.id, second.kind, second.slices) == ("1", "y", {"n": "2"})
    assert first.cluster == third.cluster != second.cluster
    assert pickle.loads(pickle.dumps(found)).image(1) == BLUE


def test_an_identity_depends_on_content_alone(tmp_path: Path) -> None:
    identities = []
    for number, (rows, group) in enumerate(
        [(ROWS, 2), (ROWS, 1), ([*ROWS[:2], {**ROWS[2], "image": as_cell(GREEN)}], 2)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        save(folder / "rows.parquet", rows, group)
        identities.append(questions(folder, YAML).identity)
    assert identities[0] == identities[1] != identities[2]
    assert questions(folder, YAML.replace("Brief", "Short")).identity != identities[2]


def test_the_cache_of_images_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_images, "CACHE_BYTES", len(RED) + 1)
    save(tmp_path / "a.parquet", [{**ROWS[0], "image": as_cell(image)} for image in (RED, BLUE, GREEN)], 3)
    found = questions(tmp_path, YAML)
    assert [found.image(number) for number in (2, 0, 1, 2)] == [GREEN, RED, BLUE, GREEN]
    assert len(found._images._cache) == 1


def test_a_limit_is_spread_over_the_rows_and_keeps_groups_together(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "pair": number // 2} for number in range(12)]
    save(tmp_path / "a.parquet", rows, 5)
    assert [question.id for question in questions(tmp_path, YAML, 3).questions] == ["0", "4", "8"]
    paired = YAML.replace("kind:", "group: pair, kind:")
    assert [question.id for question in questions(tmp_path, paired, 4).questions] == ["0", "1", "6", "7"]
    where = YAML.replace("'*.parquet'", "'*.parquet', where: {pair: [1, 5]}")
    assert [question.id for question in questions(tmp_path, where).questions] == ["2", "3", "10", "11"]


def test_json_lines_with_named_images(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "r.png").write_bytes(RED)
    (tmp_path / "pictures" / "b.png").write_bytes(BLUE)
    rows = [
        {"q": "<image> or <image>?", "pictures": ["r.png", "b.png"], "answers": [{"answer": "a"}, {"answer": "b"}]},
        {"q": "neither", "pictures": [], "answers": [{"answer": "c"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    yaml = """
data: {files: rows.jsonl, images: pictures}
fields: {question: q, images: [pictures], answers: [answers.answer]}
prompt: "{q}"
"""
    found = questions(tmp_path, yaml)
    first, second = found.questions
    assert text_of(first.messages[0]) == "<image> or <image>?"
    assert (first.images, second.images, first.reference.answers) == ((0, 1), (), ("a", "b"))
    assert questions(tmp_path, yaml.replace("jsonl", "json")).identity == found.identity


def test_images_of_a_table_by_id(tmp_path: Path) -> None:
    save(tmp_path / "pictures.parquet", [{"id": "7", "image": as_cell(RED)}, {"id": "8", "image": as_cell(BLUE)}])
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "imageId": "8", "answer": "a"}\n')
    found = questions(tmp_path, "data: {files: rows.jsonl, images: pictures.parquet}\nfields: {images: [imageId]}")
    assert found.image(*found.questions[0].images) == BLUE


def test_shards(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colour?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "shape?"},
        {"role": "assistant", "content": "square"},
    ]
    with ShardWriter(tmp_path, "test", 10) as writer:
        writer.write("a", {"messages": turns, "kinds": ["colour", "shape"], "source": "s"}, [RED])
        writer.write("b", {"messages": turns[:2]}, [BLUE])
    found = questions(tmp_path, "data: {files: 'test-*.tar'}")
    assert [question.kind for question in found.questions] == ["colour", "shape", "all"]
    assert [question.reference.answers for question in found.questions] == [("red",), ("square",), ("red",)]
    assert [question.images for question in found.questions] == [(0,), (0,), (1,)]
    assert found.questions[1].messages[-1]["content"] == [{"type": "image"}, {"type": "text", "text": "shape?"}]
    assert found.questions[0].reference.row["source"] == "s"


@pytest.mark.parametrize("form", ["['red', 'blue']", '["red", "blue"]', "(a) red (b) blue"])
def test_options_in_a_text(tmp_path: Path, form: str) -> None:
    save(tmp_path / "a.parquet", [{**ROWS[0], "options": form, "right": "(b)"}])
    yaml = YAML.replace("answers: [answers]", "answers: [right], answers_as: letter, choices: [options]")
    (question,) = questions(tmp_path, yaml.replace("Brief", "{choices}\\n{letters}")).questions
    assert (question.reference.choices, question.reference.answers) == (("red", "blue"), ("B",))
    assert text_of(question.messages[0]) == "<image>what?\nA. red\nB. blue\nA, B."


def test_options_in_columns_and_images_in_places(tmp_path: Path) -> None:
    row = {"q": "as in <image 2>, <image 2>?", "A": "x", "B": "<image 1>", "C": "nan", "answer": "1", "hint": ""}
    pictures = {"image_1": as_cell(RED), "image_2": as_cell(BLUE), "image_3": as_cell(GREEN)}
    save(tmp_path / "a.parquet", [row | pictures])
    (question,) = questions(
        tmp_path,
        "data: {files: a.parquet}\nsystem: Be brief.\n"
        "fields: {question: q, images: [image_1, image_2, image_3], choices: [A, B, C], answers_as: number}\n"
        'prompt: "{?hint:Hint: {hint}\\n}{!hint:No hint: }{q|remove:?} {choices}"',
    ).questions
    assert question.messages[0] == {"role": "system", "content": "Be brief."}
    assert text_of(question.messages[1]) == "No hint: as in <image>, <image 2> A. x\nB. <image>"
    assert question.images == (1, 0)
    assert (question.reference.choices, question.reference.answers) == (("x", "<image 1>"), ("B",))


def test_another_prompt_needs_no_file(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", ROWS)
    found = questions(tmp_path, YAML)
    (tmp_path / "a.parquet").unlink()
    assert text_of(found.with_prompt("Say: {question}").questions[0].messages[0]) == "<image>Say: what?"


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


BAD: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "unknown field": (ROWS, YAML.replace("[answers]", "[answer]"), "no field 'answer', there are .*mean 'answers'"),
    "unknown field in the prompt": (ROWS, YAML.replace("{question}", "{quest}"), "prompt: .* no field 'quest'"),
    "unknown field of where": (ROWS, YAML.replace("}", ", where: {m: 1}}", 1), "data.where: .* no field 'm'"),
    "unknown key": (ROWS, YAML.replace("kind:", "kinds:"), "fields.kinds in .*unknown key"),
    "no rows": (ROWS, YAML.replace("}", ", where: {n: 9}}", 1), "has no rows with {'n': 9}"),
    "no references": ([{**ROWS[0], "answers": []}], YAML, "a.parquet, row 0: no reference answer in answers"),
    "doubled ids": (ROWS, YAML.replace("kind:", "id: topic, kind:"), "row 2: the id 'x' in topic is that of .*row 0"),
    "no image": ([{**ROWS[0], "image": b"abc"}], YAML, "row 0: its image cannot be decoded: not a readable"),
    "a path alone": (
        [{**ROWS[0], "image": {"bytes": None, "path": "/etc/passwd"}}, ROWS[1]],
        YAML,
        "names the image '/etc/passwd', whose bytes",
    ),
    "one option": (ROWS, YAML.replace("kind:", "choices: [topic], kind:"), "'x' is no list of options"),
    "likelihood": (ROWS, YAML + "\nanswer: {by: likelihood}", "answer.by: likelihood compares options"),
    "open brace": (ROWS, YAML.replace("{question}", "{question"), "prompt: a { is not closed"),
    "attributes": (ROWS, YAML.replace("{question}", "{question.__class__}"), "no field '__class__' in a str"),
    "function": (ROWS, YAML.replace("{question}", "{question|eval}"), "unknown function 'eval'"),
    "marks": (ROWS, YAML.replace("{question}", "<image><image>{question}"), "2 times <image>, and there are 1 images"),
    "names without a folder": (ROWS, YAML.replace("kind:", "images: [topic], kind:"), "data.images: field 'topic'"),
    "format": (ROWS, YAML.replace("*.parquet", "a.csv"), "no file of a known format"),
    "no file": (ROWS, YAML.replace("*.parquet", "b.parquet"), "no file .*b.parquet; did you mean '.*a.parquet'"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_sentence(tmp_path: Path, case: str) -> None:
    rows, yaml, message = BAD[case]
    save(tmp_path / "a.parquet", rows)
    with pytest.raises(UserError, match=message) as raised:
        questions(tmp_path, yaml)
    assert "\n" not in str(raised.value)


def test_cut_files(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", ROWS)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-100])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        questions(tmp_path, YAML)
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "c", "answ')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: bad JSON"):
        questions(tmp_path, "data: {files: rows.jsonl}\nfields: {images: []}")


@pytest.mark.parametrize("name", ["../own.yaml", "/etc/passwd", "absent.png"])
def test_image_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "image": name, "answer": "a"}) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: (unsafe path|missing image)"):
        questions(tmp_path, "data: {files: rows.jsonl, images: pictures}")
