"""Files of samples: written and read again, read as lmms-eval writes them, and refused for other questions."""

import json
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.tasks.question import TaskQuestion
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample
from fvl_lightning.evaluation.tasks.samples import check_same_questions, outputs_for, read_samples, write_samples

COLOUR = Reference(("red", "dark red"), question="Which colour?", row={"level": 3})
OPTION = Reference(("B",), question="Which shape?", choices=("ring", "star"), group="g1")
SAMPLES = [
    TaskSample("q-7", "Red\u2028\nit is", "red", 1.0, COLOUR, "colour", "image 1", {"size": "small"}, "Which colour?"),
    TaskSample("q-9", "[-2.5, -0.5]", "B", 1.0, OPTION, "shape", "image 2", prompt="Which shape? A. ring B. star"),
    TaskSample("q-8", "\ud800", "\ud800", nan, Reference((), question="Why?"), "why", "image 2", prompt="Why?"),
]
RESULT = TaskResult("colours", "Colours", "accuracy", "macro", KindScores(1.0, 1.0), SAMPLES)
QUESTIONS = [TaskQuestion(sample.id, ({"role": "user", "content": ""},), (), sample.reference) for sample in SAMPLES]


def of_lmms_eval(doc_id: int, target: str, answer: Any, **fields: Any) -> dict[str, Any]:
    """A line as lmms-eval 0.7.3 writes it; `resps` is left out where it equals the filtered one."""
    return {
        "doc_id": doc_id, "target": target, "filtered_resps": answer, "token_counts": [None], "doc_hash": "74234e98",
        "exact_match": 1.0, "input": "Question: Which colour? Answer:", **fields,
    }  # fmt: skip


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_samples(path := tmp_path / "samples.jsonl", RESULT)
    found = read_samples(path, "accuracy")
    assert isnan(found[2].score)
    assert [replace(sample, score=0.0) for sample in found] == [replace(sample, score=0.0) for sample in SAMPLES]
    assert [sample.score for sample in found[:2]] == [1.0, 1.0]
    assert outputs_for(path, QUESTIONS[::-1]) == [sample.output for sample in SAMPLES][::-1]


def test_lines_have_the_fields_of_lmms_eval(tmp_path: Path) -> None:
    write_samples(path := tmp_path / "samples.jsonl", RESULT)
    first, second, third = (json.loads(line) for line in path.read_text().split("\n")[:-1])
    assert (first["doc_id"], first["target"], first["resps"]) == (0, "['red', 'dark red']", ["Red\u2028\nit is"])
    assert (first["filtered_resps"], first["accuracy"], first["input"]) == ("red", 1.0, "Which colour?")
    assert second["filtered_resps"] == [["2.5", "False"], ["0.5", "True"]]
    assert third["accuracy"] is None
    assert len({line["doc_hash"] for line in (first, second, third)}) == 3


def test_files_of_lmms_eval_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "samples.jsonl",
        of_lmms_eval(0, "['red', 'dark red']", "red", resps=["Red, it is"]),
        of_lmms_eval(2, "1", [["2.5", "False"], ["0.5", "True"]], exact_match={"score": 0.5, "category": "x"}),
        "",
        of_lmms_eval(1, "B", ["(0.1, True)", "(0.7, False)"], exact_match=False),
        of_lmms_eval(3, "blue", ["blue"]),
    )
    found = read_samples(path)
    assert [sample.id for sample in found] == ["0", "2", "1", "3"]
    assert [sample.output for sample in found] == ["Red, it is", "[-2.5, -0.5]", "[-0.1, -0.7]", "blue"]
    assert [sample.prediction for sample in found] == ["red", "B", "A", "blue"]
    assert [sample.score for sample in found] == [1.0, 0.5, 0.0, 1.0]
    assert [sample.reference.answers for sample in found] == [("red", "dark red"), ("1",), ("B",), ("blue",)]
    assert len({sample.cluster for sample in found}) == 4
    with pytest.raises(ConfigError, match=r"line 1 of .*: unknown score 'exact_mach', .* mean 'exact_match'"):
        read_samples(path, "exact_mach")


def test_questions_of_a_task_are_found_by_the_number_of_their_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    star = of_lmms_eval(1, "1", "star", input="Which   SHAPE?")
    lines = [star, of_lmms_eval(0, "dark red", "green"), of_lmms_eval(2, "", "because", input="Why?")]
    path = write(tmp_path / "samples.jsonl", *lines)
    assert outputs_for(path, QUESTIONS) == ["green", "star", "because"]
    assert outputs_for(path, QUESTIONS[:2]) == ["green", "star"]
    assert "1 of its 3 answers are to other questions and are ignored" in caplog.text
    with pytest.raises(DataError, match=r"has 2 questions and lacks 1 of the 3 of the task, such as 2; compare"):
        outputs_for(write(tmp_path / "cut.jsonl", *lines[:2]), QUESTIONS)
    other = write(tmp_path / "other.jsonl", {**star, "target": "0"}, *lines[1:])
    with pytest.raises(DataError, match=r"line 1 of .* to question q-9 .* answer is '0', that of the task 'B'"):
        outputs_for(other, QUESTIONS)
    other = write(tmp_path / "other.jsonl", {**star, "input": "Which size?"}, *lines[1:])
    with pytest.raises(DataError, match=r"line 1 of .* q-9 .* it asks 'Which size\?', the task 'Which shape\?'"):
        outputs_for(other, QUESTIONS)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"doc_id": 1, "tar', "line 2 of .* is no JSON object; the file was cut or edited"),
        ("[1]", "line 2 of .* is no JSON object"),
        ({"doc_id": 1, "target": "a"}, "line 2 of .* has no filtered_resps, which lmms-eval writes with --log_samples"),
        (of_lmms_eval(1, "a", ["b", "c"]), "line 2 of .* has 2 answers to its question, expected one text"),
        (of_lmms_eval(1, "a", None), "line 2 of .* has an answer of type NoneType"),
        (of_lmms_eval(0, "a", "b"), "lines 1 and 2 both answer question 0"),
    ],
)
def test_a_line_that_is_no_sample_is_refused(tmp_path: Path, line: Any, sentence: str) -> None:
    path = write(tmp_path / "samples.jsonl", of_lmms_eval(0, "red", "red"), line)
    with pytest.raises(DataError, match=sentence):
        read_samples(path)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no samples"):
        read_samples(write(tmp_path / "samples.jsonl", ""))
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")


def test_answers_to_other_questions_are_not_compared() -> None:
    names = ("a.jsonl", "b.jsonl")
    check_same_questions(SAMPLES, SAMPLES[::-1], names)
    with pytest.raises(DataError, match=r"questions: 1 are only in the first and 0 only in the second, .* q-7"):
        check_same_questions(SAMPLES, SAMPLES[1:], names)
    other = [replace(SAMPLES[0], reference=Reference(("green",))), *SAMPLES[1:]]
    with pytest.raises(DataError, match="the answer to q-7 is 'red, dark red' in the first and 'green' in the second"):
        check_same_questions(SAMPLES, other, names)
