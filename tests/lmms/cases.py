"""Made-up answers with their references, from a seed: unicode, punctuation, numbers, and empty answers."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = """
    red blue dog dogs cat the a an The A two Two 3 10 none zero ten dont can't cant youre it's isnt she'd've hed've
    o'clock coca-cola U.S. p.m. stop. café naïve Straße Ω 猫 日本 привет 😀 1,000 2.5 50% $5 1/2 yes no Yes No. maybe
    North-West traffic light man's men's (left) "quoted" semi;colon what? wow! x=y under_score back\\slash a@b.c #1
    """.split()  # noqa: SIM905
SEPARATORS = (" ", " ", " ", " ", "  ", "\n", "\t", ", ", "-", ". ", "; ", "? ", "'s ", "/")
OPTIONS = ("a red car", "blue", "Two dogs", "cat", "3", "the dog", "North-West", "none of these", "red")
LETTERS = "ABCD"


@dataclass
class Case:
    """One answer of a metric, and the options with which it is scored."""

    metric: str
    answer: str
    references: list[str]
    choices: list[str] = field(default_factory=list)
    group: str = ""
    kind: str = "all"
    row: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def text(draw: random.Random, most: int = 5) -> str:
    """Returns up to `most` words with marks between them; sometimes nothing."""
    words = [draw.choice(WORDS) for _ in range(draw.choice([0, *range(1, most + 1), *range(1, most + 1)]))]
    result = "".join(word + draw.choice(SEPARATORS) for word in words).strip()
    return draw.choice([result, result, result.lower(), result.upper().replace("İ", "I")])


def near(draw: random.Random, truth: str) -> str:
    """Returns the truth, or the truth with other case, white space, marks or characters, or another text."""
    edits = [
        lambda: truth, lambda: truth.lower(), lambda: f"{truth}.", lambda: f" {truth} ", lambda: f"the {truth}",
        lambda: truth.replace(" ", "  "), lambda: truth[1:], lambda: f"{truth}!x", lambda: text(draw),
        lambda: f"It is {truth}", lambda: truth.capitalize(), lambda: truth[: len(truth) // 2], lambda: "",
    ]  # fmt: skip
    return draw.choice(edits)().replace("İ", "I")


def accuracy(draw: random.Random, number: int) -> Case:
    truth = text(draw).strip()
    return Case("accuracy", near(draw, truth).strip(), [truth], config={"ignore_punctuation": True})


def vqa_accuracy(draw: random.Random, number: int) -> Case:
    some, people = [text(draw, 3) for _ in range(3)], draw.choice([1, 2, 3, 5, 10, 10])
    references = [near(draw, some[0]) if draw.random() < 0.7 else draw.choice(some) for _ in range(people)]
    config = {"normalisation": draw.choice(["textvqa", "vqav2"]), "as_lmms_eval": True}
    return Case("vqa_accuracy", near(draw, draw.choice(references)), references, config=config)


def anls(draw: random.Random, number: int) -> Case:
    references = [text(draw, 8) for _ in range(draw.randint(1, 4))]
    return Case("anls", near(draw, draw.choice(references)), references)


def relaxed_accuracy(draw: random.Random, number: int) -> Case:
    if draw.random() < 0.3:
        truth = text(draw, 2)
        return Case("relaxed_accuracy", near(draw, truth), [truth], config={"as_lmms_eval": True})
    value = draw.choice([0.0, draw.uniform(-100, 100), float(draw.randint(1, 2020)), 1e-3])
    form = draw.choice(["{:g}", "{:.2f}", "{:g}%", "{:.3e}", " {:g}", "{:,.1f}", "nan", "inf", "{:g}%%"])
    factor = draw.choice([1, 1.04, 0.96, 1.05, 1.06, 100, 0.01])
    answer = draw.choice([form, "{:g}", "{:g}%", "{:g} cm"]).format(value * factor)
    return Case("relaxed_accuracy", answer, [form.format(value)], config={"as_lmms_eval": True})


def pope(draw: random.Random, number: int) -> Case:
    answers = ("yes", "no", "Yes", " No\n", "yes.", "Yes, there is", "not sure", "", "はい", "NO", "yes", "no")
    return Case("pope", draw.choice(answers), [draw.choice(["yes", "no", "Yes", " no"])], config={"as_lmms_eval": True})


def mme(draw: random.Random, number: int) -> Case:
    answers = (
        "yes", "no", "Yes.", "No, it is not.", "y", "N", "know", "not", "", ". yes", "the answer is no", "nope", "はい",
        "ye s", "y e", "Noyes", "x", "...",
    )  # fmt: skip
    kinds = ("existence", "count", "OCR", "code_reasoning", "text_translation")
    kind, group = kinds[number // 2 % len(kinds)], f"image {number // 2}"
    return Case("mme", draw.choice(answers), [("Yes", "No.")[number % 2]], kind=kind, group=group)


def ocrbench(draw: random.Random, number: int) -> Case:
    some = [text(draw, 3), "\\Delta x + 1", "\uff21\uff22\uff23\uff11", "12 : 30", "a\nb"]
    references = [draw.choice(some) for _ in range(draw.randint(1, 3))]
    truth = draw.choice(references)
    answer = draw.choice([near(draw, truth), f"It says {truth.lower()} there", "abc1"])
    dataset = draw.choice(["HME100k", "IIIT5K"])
    return Case("ocrbench", answer, references, row={"dataset": dataset})


def multiple_choice(draw: random.Random, number: int) -> Case:
    choices = draw.sample(OPTIONS, 4)
    name, other = draw.choice("ABCDE"), draw.choice(LETTERS)
    option = draw.choice(choices)
    forms = (
        "{name}", "{lower}", "({name})", "{name}. {option}", "{name}: {option}", "{name}) {option}", "{option}", "",
        "The answer is {name}.", "the correct answer is ({name})", "I think {option} is what is right here",
        "答案是{name}",
        "It is not {other} , so I choose {name}", "{other} or {name}", "A {option} is in it", "{option} {name}", "Blue",
        "({other}) is wrong. The best option is {name}: {option}", "Because of {name} and {other}, {name}", ":{name}",
        "{name}.{other}.", "{name},", "My answer is '{name}'", "CAB", "{name} \n\n{option}", " {name} ", "{name}!?",
        "Answer is {other}. No, wait. The answer is {name} indeed", "猫{name}", "Both of {option} and of {name}.",
    )  # fmt: skip
    answer = draw.choice(forms).format(name=name, lower=name.lower(), other=other, option=option)
    reading = ("ai2d", "mmbench", "mmmu", "mmstar", "scienceqa")[number % 5]
    truth = draw.choice([other, name if name in LETTERS else "A"])
    return Case("multiple_choice", answer, [truth], choices, config={"reading": reading})


def iou(draw: random.Random, number: int) -> Case:
    left, top = draw.uniform(0, 0.6), draw.uniform(0, 0.6)
    box = [left, top, left + draw.uniform(0.05, 0.4), top + draw.uniform(0.05, 0.4)]
    shifted = [round(side + draw.choice([0, 0, 0.02, -0.1, 0.3]), draw.choice([1, 2, 4])) for side in box]
    forms = (
        "[{}, {}, {}, {}]", "The box is [{}, {}, {}, {}].", "[{},{},{},{}]", "[ {}, {}, {}, {} ]", "({}, {}, {}, {})",
        "none", "",
    )  # fmt: skip
    return Case("iou", draw.choice(forms).format(*shifted), [str(box)], config={"as_lmms_eval": True})


def _caption(draw: random.Random) -> str:
    size, colour = draw.choice(["small", "big", "old"]), draw.choice(["red", "blue", "brown", "black and white"])
    noun, verb = draw.choice(["dog", "cat", "man", "bus", "café"]), draw.choice(["runs on", "sits near", "is in"])
    return f"a {size} {colour} {noun} {verb} the {draw.choice(['street', 'table', 'wall', 'green field', '猫'])}"


def captions(metric: str) -> Callable[[random.Random, int], Case]:
    """Returns the cases of a metric of captions whose words are divided by single spaces."""

    def case(draw: random.Random, number: int) -> Case:
        references = [_caption(draw) for _ in range(draw.randint(1, 5))]
        words = draw.choice([*references, _caption(draw), "a", ""]).split()
        kept = [word for word in words if draw.random() < 0.9]
        return Case(metric, " ".join(kept), references, config={"tokens": "spaces"})

    return case


FAMILIES: dict[str, Callable[[random.Random, int], Case]] = {
    **{maker.__name__: maker for maker in (accuracy, vqa_accuracy, anls, relaxed_accuracy, pope, mme, ocrbench)},
    **{maker.__name__: maker for maker in (multiple_choice, iou)},
    **{metric: captions(metric) for metric in ("bleu", "cider", "rouge_l")},
}


def cases(metric: str, number: int) -> list[Case]:
    """Returns that many cases of a metric, the same ones every time."""
    draw = random.Random(f"{metric} 17")
    return [FAMILIES[metric](draw, index) for index in range(number)]
