"""Steps from what a model has written to the answer that is judged."""

from typing import get_args

import pytest

from fvl_lightning.evaluation.tasks.cleaning import STEPS, clean
from fvl_lightning.evaluation.tasks.config import TaskAnswer

CASES = [
    ("strip", "  a b\n", "a b"),
    ("first_line", "\n red. \nblue", "red."),
    ("first_line", " \n", ""),
    ("first_word", "'Yes', it is", "Yes"),
    ("first_word", "...", ""),
    ("lower", "ÄB", "äb"),
    ("letter", "B", "B"),
    ("letter", "(B) red", "B"),
    ("letter", "B. red", "B"),
    ("letter", "**B**", "**B**"),
    ("letter", "A cat", "A cat"),
    ("letter", "The answer is (C).", "C"),
    ("letter", "Option A is wrong, so the answer is D", "D"),
    ("letter", "It is red [B]", "B"),
    ("letter", "the answer is a dog", "the answer is a dog"),
    ("after_answer", "First 2, then 3. Answer: 5", "5"),
    ("after_answer", "The final answer is 7", "7"),
    ("after_answer", "so #### 8", "8"),
    ("after_answer", "9", "9"),
    ("number", "about 1,234.5 km", "1234.5"),
    ("number", "2 of them, -3", "-3"),
    ("number", "12 %", "12"),
    ("number", "12%", "12%"),
    ("number", "1e3", "1e3"),
    ("number", "none", "none"),
]


@pytest.mark.parametrize(("step", "text", "answer"), CASES)
def test_a_step(step: str, text: str, answer: str) -> None:
    assert clean(text, [step]) == answer


def test_steps_are_taken_in_order_and_all_are_known() -> None:
    assert clean("Answer: (B)\nsince", ["after_answer", "first_line", "letter", "lower"]) == "b"
    (step,) = get_args(TaskAnswer.__dataclass_fields__["clean"].type)
    assert set(get_args(step)) == set(STEPS)
