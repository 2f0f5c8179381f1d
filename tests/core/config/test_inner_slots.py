"""Components inside a component: a Config's field that holds slot entries under names of one's own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import Choice, as_plain, choose
from tests.core.tiny import Gated, Mean, Tiny

Load = Callable[..., Tiny]
Sentence = Callable[..., str]


class Stack:
    """Fills the slot `fusion` under the name "stack" with fusions of its own."""

    @dataclass
    class Config:
        """Fields of the component."""

        parts: dict[str, Any] = field(default_factory=dict, metadata={"slots": "fusion"})
        width: int = 1


@pytest.fixture(autouse=True)
def stack(tiny_components: None) -> None:
    registry._components["fusion"]["stack"] = Stack


def test_each_is_a_choice(load: Load) -> None:
    text = "fusion: {name: stack, parts: {a: {name: gated, hidden: 2}, b: {name: mean}}}"
    fusion = load(text, "fusion.parts.b.hidden=9")
    assert fusion.fusion.config.parts == {
        "a": Choice("fusion", "gated", Gated.Config(hidden=2)), "b": Choice("fusion", "mean", Mean.Config(9))
    }


def test_inside_one_another(load: Load) -> None:
    fusion = load("fusion: {name: stack, parts: {a: {name: stack, parts: {b: mean}}}}").fusion
    assert fusion.config.parts["a"].config.parts["b"] == Choice("fusion", "mean", Mean.Config())


def test_written_out_they_are_entries_again(load: Load) -> None:
    parts = "{a: {name: gated, hidden: 2}, b: {name: stack, parts: {c: mean}}}"
    fusion = load(f"fusion: {{name: stack, parts: {parts}}}").fusion
    plain = as_plain(fusion)
    assert plain["parts"]["a"]["name"] == "gated"
    assert plain["parts"]["b"] == {"name": "stack", "width": 1, "parts": {"c": {"name": "mean", "hidden": 4}}}
    assert choose("fusion", plain) == choose("fusion", fusion.as_dict()) == fusion


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ("{a: gate}", "fusion.parts.a in tiny.yaml: unknown fusion 'gate', allowed: gated, mean, stack; did you mean"
         " 'gated'?"),
        ("{a: {name: mean, hiden: 2}}", "fusion.parts.a.hiden in tiny.yaml: unknown key 'hiden', allowed: hidden;"
         " did you mean 'hidden'?"),
        ("{a: {hidden: 2}}", "fusion.parts.a in tiny.yaml: expected a name or a mapping with `name`, found"
         " {'hidden': 2}"),
        ("{a: }", "fusion.parts.a in tiny.yaml: expected a name or a mapping with `name`, found None"),
        ("{a: {name: gated, hidden: 3}}", "fusion.parts.a in tiny.yaml: hidden must be even, found 3"),
        ("{a: {name: stack, parts: {b: men}}}", "fusion.parts.a.parts.b in tiny.yaml: unknown fusion 'men', allowed:"
         " gated, mean, stack; did you mean 'mean'?"),
    ],
)
def test_mistakes_say_where(sentence: Sentence, parts: str, says: str) -> None:
    assert sentence(f"fusion: {{name: stack, parts: {parts}}}") == says


def test_mistakes_on_the_command_line(sentence: Sentence) -> None:
    said = sentence("fusion: {name: stack, parts: {a: mean}}", "fusion.parts.a={name: mean, hidden: wide}")
    assert said.startswith("fusion.parts.a.hidden on the command line: expected a whole number, found 'wide'")
