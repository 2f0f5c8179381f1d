"""Rows made by hand in the layouts of the public benchmarks, and the questions that they must become.

Names and types of the fields are those of the data sets' cards on the hub, as far as they say; fields that no task
reads are left out where they are many. Prompts are those that lmms-eval makes of these rows.
"""

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pyarrow as pa
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT, TEXTS, INT, FLOAT = pa.string(), pa.list_(pa.string()), pa.int64(), pa.float64()
WORD = "\nAnswer the question using a single word or phrase."
OPTION = "\nAnswer with the option's letter from the given choices directly."


def png(colour: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (3, 2), colour).save(out, "PNG")
    return out.getvalue()


def cell(colour: str) -> dict[str, Any]:
    return {"bytes": png(colour), "path": f"{colour}.png"}


RED, BLUE = cell("red"), cell("blue")


@dataclass(frozen=True)
class Asked:
    """What a row must become; `shown` are the numbers of its images."""

    prompt: str
    answers: tuple[str, ...]
    kind: str = "all"
    shown: tuple[int, ...] = (0,)
    choices: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Layout:
    """The columns of a benchmark, some rows, and what those that are asked must become."""

    columns: dict[str, pa.DataType]
    rows: list[list[Any]]
    asked: list[Asked]
    images: dict[str, Any] = field(default_factory=dict)


_QUESTION_ANSWER = {"question": TEXT, "answer": TEXT, "image": IMAGE}
_MMBENCH = {
    "index": INT, "question": TEXT, "hint": TEXT, "answer": TEXT, "A": TEXT, "B": TEXT, "C": TEXT, "D": TEXT,
    "category": TEXT, "image": IMAGE, "source": TEXT, "L2-category": TEXT, "comment": TEXT, "split": TEXT,
}  # fmt: skip
_MMBENCH_ROWS = [
    [1, "Which is red?", "Look.", "B", "one", "two", None, None, "color", RED, "s", "fine", None, "dev"],
    [2, "Which?", "nan", "C", "x", "y", "z", "nan", "shape", BLUE, "s", "coarse", None, "dev"],
]
_MME = {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": TEXT, "category": TEXT}
_MME_ROWS = [
    ["color/1.png", RED, "Is it red? Please answer yes or no.", "Yes", "color"],
    ["color/1.png", RED, "Is it blue? Please answer yes or no.", "No", "color"],
    ["code/2.png", BLUE, "Does it print 1? Please answer yes or no.", "Yes", "code_reasoning"],
]
_DOCVQA = {
    "questionId": TEXT, "question": TEXT, "question_types": TEXTS, "image": IMAGE, "docId": INT,
    "ucsf_document_id": TEXT, "ucsf_document_page_no": TEXT, "answers": TEXTS, "data_split": TEXT,
}  # fmt: skip
_INFOVQA = {
    "questionId": TEXT, "question": TEXT, "answers": TEXTS, "answer_type": TEXTS, "image": IMAGE, "image_url": TEXT,
    "operation/reasoning": TEXTS, "ocr": TEXT, "data_split": TEXT,
}  # fmt: skip
_VQAV2 = {
    "question_type": TEXT, "multiple_choice_answer": TEXT, "image_id": INT, "answer_type": TEXT, "question_id": INT,
    "question": TEXT, "image": IMAGE,
    "answers": pa.list_(pa.struct([("answer", TEXT), ("answer_confidence", TEXT), ("answer_id", INT)])),
}  # fmt: skip
_MMMU = {
    "id": TEXT, "question": TEXT, "options": TEXT, "explanation": TEXT,
    **{f"image_{number}": IMAGE for number in range(1, 8)},
    "img_type": TEXT, "answer": TEXT, "topic_difficulty": TEXT, "question_type": TEXT, "subfield": TEXT,
}  # fmt: skip
_SCIENCEQA = {
    "image": IMAGE, "question": TEXT, "choices": TEXTS, "answer": pa.int8(), "hint": TEXT, "task": TEXT, "grade": TEXT,
    "subject": TEXT, "topic": TEXT, "category": TEXT, "skill": TEXT, "lecture": TEXT, "solution": TEXT,
}  # fmt: skip
_SEED = {
    "answer": TEXT, "choice_a": TEXT, "choice_b": TEXT, "choice_c": TEXT, "choice_d": TEXT, "data_type": TEXT,
    "question": TEXT, "question_id": TEXT, "question_type_id": pa.int16(), "image": pa.list_(IMAGE),
}  # fmt: skip
_MATHVISTA = {
    "pid": TEXT, "question": TEXT, "image": TEXT, "decoded_image": IMAGE, "choices": TEXTS, "unit": TEXT,
    "precision": FLOAT, "answer": TEXT, "question_type": TEXT, "answer_type": TEXT,
    "metadata": pa.struct([("category", TEXT), ("skills", TEXTS), ("task", TEXT)]), "query": TEXT,
}  # fmt: skip
_ABOUT = {"category": "math", "skills": ["algebra"], "task": "figure question answering"}
_HALLUSION = {
    "category": TEXT, "subcategory": TEXT, "visual_input": TEXT, "set_id": TEXT, "figure_id": TEXT, "sample_note": TEXT,
    "question_id": TEXT, "question": TEXT, "gt_answer_details": TEXT, "gt_answer": TEXT, "filename": TEXT,
    "image": IMAGE,
}  # fmt: skip
_CV_BENCH = {
    "idx": INT, "type": TEXT, "task": TEXT, "image": IMAGE, "question": TEXT, "choices": TEXTS, "answer": TEXT,
    "prompt": TEXT, "filename": TEXT, "source": TEXT,
}  # fmt: skip
_MMSTAR_QUESTION = "Which is red?\nOptions: A: one, B: two, C: three, D: four"
_CHOICES = "\nA. one\nB. two"

LAYOUTS: dict[str, Layout] = {
    "vqav2": Layout(
        _VQAV2,
        [["what", "red", 9, "other", 90, "What?", RED, [{"answer": "red"}, {"answer": "dark red"}]]],
        [Asked(f"What?{WORD}", ("red", "dark red"), "other")],
    ),
    "gqa": Layout(
        {"id": TEXT, "imageId": TEXT, "question": TEXT, "answer": TEXT, "isBalanced": pa.bool_()},
        [["1", "n8", "Is it red?", "no", True], ["2", "n7", "What is it?", "wall", True]],
        [Asked(f"Is it red?{WORD}", ("no",)), Asked(f"What is it?{WORD}", ("wall",), shown=(1,))],
        images={"id": ["n7", "n8"], "image": [RED, BLUE]},
    ),
    "mmbench_en": Layout(
        _MMBENCH,
        _MMBENCH_ROWS,
        [
            Asked(f"Look. Which is red? There are several options:{_CHOICES}\n{OPTION}", ("B",), "color",
                  choices=("one", "two")),
            Asked(f"Which? There are several options:\nA. x\nB. y\nC. z\n{OPTION}", ("C",), "shape", (1,),
                  ("x", "y", "z")),
        ],
    ),
    "mmbench_cn": Layout(
        _MMBENCH,
        _MMBENCH_ROWS[:1],
        [Asked(f"Look. Which is red? There are several options:{_CHOICES}\n\n"
               "请直接使用所提供的选项字母作为答案回答。", ("B",), "color", choices=("one", "two"))],
    ),
    "vizwiz": Layout(
        {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answers": TEXTS, "category": TEXT},
        [["VizWiz_val_0.jpg", RED, "what is This?", ["red"] * 10, "other"]],
        [Asked("What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'."
               f"{WORD}", ("red",) * 10, "other")],
    ),
    "pope": Layout(
        {"id": TEXT, "question_id": TEXT, "question": TEXT, "answer": TEXT, "image_source": TEXT, "image": IMAGE,
         "category": TEXT},
        [["0", "1", "Is there a cat? ", "yes", "COCO_1", RED, "adversarial"],
         ["1", "1", "Is there a dog?", "no", "COCO_1", RED, "popular"]],
        [Asked(f"Is there a cat?{WORD}", ("yes",), "adversarial"), Asked(f"Is there a dog?{WORD}", ("no",), "popular")],
    ),
    "mmvet": Layout(
        {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": TEXT, "image_source": TEXT,
         "capability": TEXT},
        [["v1_0", RED, "What is x?", "-1<AND>-5", "vet", "ocr,math"]],
        [Asked("First please perform reasoning, and think step by step to provide best answer to the following "
               "question: \n\nWhat is x?", ("-1<AND>-5",), "ocr,math")],
    ),
    "mme_perception": Layout(
        _MME,
        _MME_ROWS,
        [Asked(f"Is it red?{WORD}", ("Yes",), "color", group="color/1.png"),
         Asked(f"Is it blue?{WORD}", ("No",), "color", group="color/1.png")],
    ),
    "mme_cognition": Layout(
        _MME, _MME_ROWS, [Asked(f"Does it print 1?{WORD}", ("Yes",), "code_reasoning", group="code/2.png")]
    ),
    "seedbench_image": Layout(
        _SEED,
        [["C", "one", "two", "three", "four", "image", "Which?", "1", 3, [RED]],
         ["A", "one", "two", "three", "four", "video", "When?", "2", 10, [RED, BLUE]]],
        [Asked(f"Which?{_CHOICES}\nC. three\nD. four{OPTION}", ("C",), "3", choices=("one", "two", "three", "four"))],
    ),
    "hallusion": Layout(
        _HALLUSION,
        [["VD", "figure", "1", "0", "1", "n", "0", "Is it red?", "It is.", "1", "f.png", RED],
         ["VS", "chart", "2", "0", "2", "n", "1", "Is it?", "It is not.", "0", "g.png", BLUE]],
        [Asked("Is it red?", ("yes",), "figure"), Asked("Is it?", ("no",), "chart", (1,))],
    ),
    "mmstar": Layout(
        {"index": INT, "question": TEXT, "image": IMAGE, "answer": TEXT, "category": TEXT, "l2_category": TEXT,
         "meta_info": pa.struct([("source", TEXT), ("split", TEXT), ("image_path", TEXT)])},
        [[0, f" {_MMSTAR_QUESTION}\n", RED, "B", "coarse perception", "image emotion",
          {"source": "s", "split": "val", "image_path": "p"}]],
        [Asked(f"{_MMSTAR_QUESTION}{OPTION[:-1]}", ("B",), "image emotion")],
    ),
    "realworldqa": Layout(
        _QUESTION_ANSWER,
        [["Which?\n\nA. Left.\nB. Right.\nPlease answer directly with only the letter.", "B", RED],
         ["How many? ", "2", RED]],
        [Asked("Which?\n\nA. Left.\nB. Right.\nPlease answer directly with only the letter.", ("B",)),
         Asked("How many?", ("2",))],
    ),
    "cv_bench": Layout(
        _CV_BENCH,
        [[0, "2D", "Count", RED, "How many?", ["0", "1", "2"], "(B)", "How many? (A) 0 (B) 1 (C) 2", "f", "COCO"]],
        [Asked("Note: You only need to respond with A, B, C without providing any additional information.\n\n"
               "How many? (A) 0 (B) 1 (C) 2", ("B",), "Count", choices=("0", "1", "2"))],
    ),
    "mmvp": Layout(
        {"Index": pa.int32(), "Question": TEXT, "Options": TEXT, "Correct Answer": TEXT, "image": IMAGE},
        [[1, "Open or closed?", "(a) Open (b) Closed", "(b)", RED]],
        [Asked(f"Open or closed?\nA. Open\nB. Closed{OPTION}", ("B",), choices=("Open", "Closed"))],
    ),
    "ai2d": Layout(
        {"question": TEXT, "options": TEXTS, "answer": TEXT, "image": IMAGE},
        [["Which?", ["one", "two"], "1", RED]],
        [Asked(f"Which?{_CHOICES}{OPTION}", ("B",), choices=("one", "two"))],
    ),
    "mathvista": Layout(
        _MATHVISTA,
        [["1", "Which?", "i.png", RED, ["one", "two"], None, None, "two", "multi_choice", "text", _ABOUT, ""],
         ["2", "How far?", "i.png", RED, [], "m", 1.0, "1.2", "free_form", "float", _ABOUT, ""],
         ["3", "How many?", "i.png", RED, None, None, None, "3", "free_form", "integer", _ABOUT, ""]],
        [Asked(f"Which?{_CHOICES}{OPTION}", ("B",), _ABOUT["task"], choices=("one", "two")),
         Asked("How far? (Unit: m)\nAnswer the question using a single floating-point number with one decimal place.",
               ("1.2",), _ABOUT["task"]),
         Asked("How many?\nAnswer the question using a single integer number.", ("3",), _ABOUT["task"])],
    ),
    "mmmu": Layout(
        _MMMU,
        [["validation_Art_1", "In <image 2> and <image 1>?", "['one', '<image 1>']", "", RED, BLUE, *[None] * 5,
          "['a']", "B", "Easy", "multiple-choice", "Drawing"],
         ["validation_Art_2", "What in <image 1>?", "[]", "", RED, *[None] * 6, "['a']", "five", "Hard", "open",
          "Music"]],
        [Asked(f"In <image> and <image>?\nA. one\nB. <image 1>\n{OPTION}", ("B",), "Drawing", (1, 0),
               ("one", "<image 1>")),
         Asked(f"What in <image>?\n{WORD}", ("five",), "Music")],
    ),
    "scienceqa": Layout(
        _SCIENCEQA,
        [[RED, "Which?", ["one", "two"], 1, "Look.", *["t"] * 2, "natural science", *["t"] * 5],
         [BLUE, "Which?", ["one", "two"], 0, "", *["t"] * 2, "language science", *["t"] * 5]],
        [Asked(f"Context: Look.\nWhich?{_CHOICES}{OPTION}", ("B",), "natural science", choices=("one", "two")),
         Asked(f"Which?{_CHOICES}{OPTION}", ("A",), "language science", (1,), ("one", "two"))],
    ),
    "textvqa": Layout(
        {"image_id": TEXT, "question_id": pa.int32(), "question": TEXT, "question_tokens": TEXTS, "image": IMAGE,
         "image_width": pa.int32(), "answers": TEXTS, "set_name": TEXT, "ocr_tokens": TEXTS},
        [["a", 1, "what IS it?", ["what"], RED, 3, ["nokia"] * 10, "val", ["NOKIA"]]],
        [Asked(f"What is it?{WORD}", ("nokia",) * 10)],
    ),
    "ocrbench": Layout(
        {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": TEXTS, "image": IMAGE},
        [["IIIT5K", "what is written? ", "Regular Text Recognition", ["CENTRE", "CENTER"], RED]],
        [Asked("what is written?", ("CENTRE", "CENTER"), "Regular Text Recognition")],
    ),
    "chartqa": Layout(
        {"type": TEXT, "question": TEXT, "answer": TEXT, "image": IMAGE},
        [["human_test", "How many?", "14", RED]],
        [Asked("How many?\nAnswer the question with a single word.", ("14",), "human_test")],
    ),
    "docvqa": Layout(
        _DOCVQA,
        [["49153", "What is the fee?", ["form"], RED, 1, "u", "1", ["$1", "1 dollar"], "val"]],
        [Asked(f"What is the fee?{WORD}", ("$1", "1 dollar"))],
    ),
    "infovqa": Layout(
        _INFOVQA,
        [["98313", "How much?", ["5%"], ["single span"], RED, "https://x", ["none"], "[]", "val"]],
        [Asked(f"How much?{WORD}", ("5%",))],
    ),
}  # fmt: skip
"""{name of a task: its layout}"""
