"""docs/statistics.md: its example runs, and its numbers are those that the benchmark saved or the code gives."""

import json
import re

import numpy as np
import pytest

from fvl_lightning.comparison.statistics.contrasts import detectable_difference, min_seeds, sd_interval
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
SAVED = json.loads((ROOT / "benchmarks" / "results" / "comparison_statistics.json").read_text(encoding="utf-8"))
TRAINED = json.loads((ROOT / "benchmarks" / "results" / "planted_effects.json").read_text(encoding="utf-8"))
TESTS = ("false_claim", "coverage", "power_1", "power_2", "power_3", "power_3_paired_t", "false_equivalent")


def table(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with `first`, header left out."""
    _, _, rest = TEXT.partition(f"\n| {first}")
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_example_says_what_the_page_says() -> None:
    code, said = re.findall(r"^```(?:python)?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    found: dict[str, list[str]] = {}
    exec(code, found)
    assert said.strip().splitlines() == found["verdicts"]


def test_the_table_of_tests_is_the_one_that_was_simulated() -> None:
    rows = table("arms x seeds")
    sizes = [size for size, row in SAVED["tests"].items() if row["testable"] and not size.startswith("10")]
    assert [row[0] for row in rows] == sizes
    for size, *cells in rows:
        assert cells == [f"{SAVED['tests'][size][name]:.1f}" for name in TESTS], size
    assert SAVED["tables"] == 10_000


def test_the_table_of_assumptions_is_the_one_that_was_simulated() -> None:
    rows = table("any false claim, pooled (paired)")
    sizes = ("3 x 5", "6 x 3", "6 x 5", "7 x 5")
    assert [row[0] for row in rows] == [name for name in SAVED["assumptions"]["3 x 5"] if not name.endswith("paired")]
    for name, *cells in rows:
        found = [SAVED["assumptions"][size] for size in sizes]
        assert cells == [f"{row[name]:.1f} ({row[f'{name}, paired']:.1f})" for row in found]


def test_the_table_of_detectable_differences_is_the_one_of_the_code() -> None:
    for arms, *cells in table("arms | 3 seeds"):
        for seeds, cell in zip((3, 5, 10, 20), cells, strict=True):
            testable = seeds >= min_seeds(int(arms))
            found = float(detectable_difference(np.array(1.0), int(arms), seeds))
            assert cell == (f"{found:.2f}" if testable else "not testable")


def test_the_numbers_in_the_text_are_the_ones_that_were_simulated() -> None:
    tests, seeds, images = SAVED["tests"], *SAVED["resampling"].values()
    looks = [row["two looks"] for row in SAVED["second_look"].values()]
    low, high = sd_interval(np.array(1.0), 3)
    numbers = {
        "three residual SDs in {} %": tests["6 x 3"]["power_3"],
        "a t test per pair in {} %": tests["6 x 3"]["power_3_paired_t"],
        "even with ten arms ({} %)": max(row["power_3"] for size, row in tests.items() if size.endswith(" 2")),
        "do find it ({} %)": tests["2 x 4"]["power_3"],
        "a factor of {};": (high / low) ** 2,
        "intervals, {} % hold the truth with 3 seeds": seeds["3"]["bootstrap"],
        "and {} % with 5": seeds["5"]["bootstrap"],
        "holds: {} % with 30 images": images["30"]["images"],
        "{} % with 100": images["100"]["images"],
        "{} % with 300": images["300"]["images"],
        "and {} % with 10.": images["10"]["images"],
    }
    words = " ".join(TEXT.split())
    for sentence, number in numbers.items():
        assert sentence.format(f"{number:.0f}") in words, sentence
    assert min(row["questions"] for row in images.values()) == pytest.approx(73, abs=0.5)
    assert max(row["questions"] for row in images.values()) == pytest.approx(75, abs=0.5)
    assert f"{high:.1f} times" in words
    assert f"false claims in {min(looks):.0f} to {max(looks):.0f} % of comparisons" in words


def test_the_table_of_trainings_is_the_one_that_was_measured() -> None:
    rows = table("strength | accuracy")
    assert [row[0] for row in rows] == list(TRAINED["planted"]["strengths"])
    for strength, *cells in rows:
        found = TRAINED["planted"]["strengths"][strength]
        assert cells == [f"{found['accuracy']:.3f}", *(str(found[name]) for name in ("better", "worse", "noise"))]
    assert f"| better, of {TRAINED['planted']['comparisons']} |" in TEXT
    alike = TRAINED["alike"]
    words = " ".join(TEXT.split())
    assert f"{alike['claims']} of {alike['comparisons']} comparisons claimed a difference" in words
    assert f"the SD of a difference over seeds is {alike['difference_sd']:.3f} there" in words
