"""Text fields keep what was written, on every way into a configuration; other fields read it as their types do."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.config.merging import override, parse_override
from fvl_lightning.core.config.yaml_text import read_yaml, write_yaml
from fvl_lightning.core.errors import ConfigError
from tests.core.tiny import Tiny

Load = Callable[..., Tiny]
Write = Callable[[str, str], Path]
WORDS = [
    "12e5", "007", "08", "no", "No", "off", "on", "yes", "true", "12:30", "1.10", "0x1f", "0o17", "0b11", "1_000",
    "3e563", "2024-01-01", "2024-01-01T10:00:00Z", ".inf", ".nan", "+5", "-0", "1e-3", "=", "y", "N", "none", "1.",
    ".5",
]  # fmt: skip


@dataclass
class Kinds:
    """A field of every kind that holds text, and the kinds that do not."""

    text: str = ""
    maybe: str | None = None
    texts: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    switch: Literal["on", "off"] = "on"
    number: float = 0.0
    whole: int | None = None
    truth: bool = False
    anything: dict[str, Any] = field(default_factory=dict)


def kinds(path: Path, *words: str, text: str = "") -> Kinds:
    path.write_text(text, encoding="utf-8")
    return load_config(Kinds, path, words)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


@pytest.mark.parametrize("word", WORDS)
def test_text_is_what_was_written(file: Path, word: str) -> None:
    text = f"text: {word}\nmaybe: {word}\ntexts: [a, {word}]\nnamed: {{{word}: {word}}}"
    wanted = Kinds(text=word, maybe=word, texts=["a", word], named={word: word})
    config = kinds(file, text=text)
    assert config == wanted
    assert kinds(file, f"text={word}", f"maybe={word}", f"texts=[a, {word}]", f"named={{{word}: {word}}}") == wanted
    assert kinds(file, text=write_yaml(as_plain(config))) == wanted
    assert yaml.safe_load(write_yaml(as_plain(config))) == as_plain(config)


@pytest.mark.usefixtures("tiny_components")
@pytest.mark.parametrize("word", ["12e5", "no", "007"])
def test_of_slots_bases_and_variants_too(load: Load, write: Write, word: str) -> None:
    write("base.yaml", f"fusion: {{name: gated, label: {word}}}\nname: {word}")
    config = load("base: base.yaml")
    assert (config.fusion.config.label, config.name) == (word, word)
    assert load("fusion: gated", f"fusion.label={word}").fusion.config.label == word
    assert load(f"fusion: {{name: gated, label: {word}}}", "fusion.label=1.0").fusion.config.label == "1.0"


def test_what_replaces_a_value_has_its_own_text(file: Path) -> None:
    assert kinds(file, "texts=[a]", "texts=[b, 007]", text="texts: [007, 1.10]").texts == ["b", "007"]
    assert kinds(file, "texts=['7', 8]", text="texts: [007, 1.10]").texts == ["7", "8"]
    assert kinds(file, "named={}", "named.b=1.0", text="named: {a: no}").named == {"b": "1.0"}
    assert kinds(file, "text='7'", text="text: 007").text == "7"
    assert kinds(file, text="whole: 7\ntext: run-${whole}").text == "run-7"


@pytest.mark.parametrize("word", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3"])
def test_numbers_are_numbers_where_a_number_is_wanted(file: Path, word: str) -> None:
    assert kinds(file, f"number={word}").number == 1e-3
    assert kinds(file, f"anything.a={word}").anything == {"a": 1e-3}


def test_zeros_in_front_do_not_count_in_eights(file: Path) -> None:
    assert kinds(file, "whole=010").whole == 10
    assert kinds(file, "whole=08").whole == 8
    assert kinds(file, "whole=1_000").whole == 1000
    assert kinds(file, "whole=0x1f").whole == 31


def test_truth(file: Path) -> None:
    for word in ("true", "yes", "on", "1"):
        assert kinds(file, f"truth={word}").truth is True
    for word in ("false", "no", "off", "0"):
        assert kinds(file, f"truth={word}").truth is False


def test_null(file: Path) -> None:
    for word in ("null", "~", "", "NULL"):
        config = kinds(file, f"maybe={word}", f"whole={word}", text="maybe: a\nwhole: 3")
        assert (config.maybe, config.whole) == (None, None)
    assert kinds(file, "maybe='null'").maybe == "null"
    assert kinds(file, "maybe='None'").maybe == "None"
    assert kinds(file, "text=None").text == "None"


def test_one_stands_for_a_list_of_one(file: Path) -> None:
    assert kinds(file, "texts=runs/a").texts == ["runs/a"]
    assert kinds(file, text="texts: 007").texts == ["007"]
    assert kinds(file, "texts=${text}/a", "text=runs").texts == ["runs/a"]
    assert check_config(Kinds, {"texts": "runs/a"}).texts == ["runs/a"]
    assert check_config(Kinds, {"texts": ("runs/a", "runs/b")}).texts == ["runs/a", "runs/b"]


REFUSED = {
    "maybe=None": "maybe on the command line: write null, as None is Python's word for it",
    "whole=None": "whole on the command line: write null, as None is Python's word for it",
    "text=null": "text on the command line: a value is needed, found null",
    "text=": "text on the command line: a value is needed, found null",
    "texts=null": "texts on the command line: expected a list, found null",
    "texts={a: b}": "texts on the command line: expected a list, found {'a': 'b'}",
    "truth=2": "truth on the command line: expected true or false, found 2",
    "truth=0.5": "truth on the command line: expected true or false, found 0.5",
    "number=.nan": "number on the command line must be a finite number, not nan",
    "number=nan": "number on the command line must be a finite number, not nan",
    "number=3e563": "number on the command line must be a finite number, not inf",
    "switch=no": "switch on the command line: unknown value 'no', allowed: off, on; did you mean 'on'?",
    "whole=12:30": "whole on the command line: expected a whole number, found '12:30'",
    "whole=1e3": "whole on the command line: expected a whole number, found '1000.0'",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_a_field_has_no_place_for(file: Path, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kinds(file, word)
    assert str(caught.value) == REFUSED[word]


def test_axes_of_a_comparison_keep_it_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("axes: {language_model.revision: [12e5, 007, no, a], seed_of: {x: [1.10]}}", encoding="utf-8")
    config = load_config(ComparisonConfig, path)
    words = [arm.overrides for arm in arms_of(config, path).values()]
    written = ["12e5", "007", "no", '"a"']
    assert [first for first, _ in words] == [f"language_model.revision={word}" for word in written]
    assert words[0][1] == "seed_of.x=1.10"
    assert json.loads(json.dumps(as_plain(config)))["axes"]["seed_of"] == {"x": [1.1]}


def test_a_configuration_from_plain_values_is_taken_as_it_is() -> None:
    assert check_config(Kinds, {"text": "007", "texts": ["no"]}) == Kinds(text="007", texts=["no"])


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("a\x85b\u2028\ufffe\uffff\x7f")
def test_any_text_survives_writing_and_reading(text: str) -> None:
    assert parse_override(override("a", text)) == {"a": text}
    written = write_yaml({"a": [text], f"{text}b": 1})
    assert read_yaml(written)["a"] == [text]
    assert yaml.safe_load(written)["a"] == [text]


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_so_does_what_is_no_text(value: object) -> None:
    assert parse_override(override("a", value)) == {"a": value} or math.isinf(value)  # type: ignore[arg-type]
    assert yaml.safe_load(write_yaml({"a": value})) == {"a": value}
    assert parse_override(f"a={write_yaml({'a': value})[3:]}") == {"a": value}
