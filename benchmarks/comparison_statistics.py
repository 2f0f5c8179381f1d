"""How often the statistics of a comparison are wrong, how often their intervals hold, and what they find.

    python benchmarks/comparison_statistics.py [--tables 10000] [--image-tables 500]

Score tables are simulated as arm + seed + residual with a residual SD of 1; effects are those of one arm, in residual
SDs. The numbers are percentages of tables (of images: of simulated answer sheets), printed and saved in
benchmarks/results/comparison_statistics.json; docs/statistics.md says what follows from them. Takes two minutes.

    tests        arms alike: any claim at all; coverage of the 95 % intervals; power for one arm's effect, of the pooled
                 test and of Holm over paired t tests; arms just different enough: any called equivalent
    assumptions  any claim where arms are alike, and residuals are not as the model says
    second_look  any claim where arms are alike, and the seeds are doubled if there was none
    resampling   coverage of a percentile bootstrap over seeds, which is not used, and of that over images, which is
"""

import argparse
from itertools import product

import numpy as np
from numpy.typing import NDArray
from recording import record
from rich.console import Console
from rich.table import Table

from fvl_lightning.comparison.statistics.contrasts import contrasts, min_seeds
from fvl_lightning.comparison.statistics.image_bootstrap import image_intervals
from fvl_lightning.evaluation.statistics import resampling

Array = NDArray[np.float64]

SIZES = [(arms, seeds) for arms in (2, 3, 6, 7, 10) for seeds in (2, 3, 4, 5, 10)]
UNEQUAL = [(2, 5), (3, 3), (3, 5), (6, 3), (6, 5), (7, 5), (6, 10)]
EFFECTS = (1, 2, 3)
BOUNDARY = 3.0
"""The smallest effect in the check of the equivalence test."""
QUESTIONS = 8
"""Per image, in the check of the bootstrap over images."""


def main() -> None:
    """Simulates, prints the tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=10_000)
    parser.add_argument("--image-tables", type=int, default=500)
    words = parser.parse_args()
    result = {
        "tables": words.tables,
        "image_tables": words.image_tables,
        "tests": {size_name(*size): measure_tests(*size, words.tables) for size in SIZES},
        "assumptions": {size_name(*size): measure_assumptions(*size, words.tables) for size in UNEQUAL},
        "second_look": {size_name(*size): second_look(*size, words.tables) for size in [(2, 5), (3, 5), (7, 5)]},
        "resampling": {
            "seeds": {str(seeds): seed_bootstrap_coverage(seeds, words.tables) for seeds in (3, 4, 5)},
            "images": {str(images): image_coverage(images, words.image_tables) for images in (10, 30, 100, 300)},
        },
    }
    record("comparison_statistics", result)
    show("Tests (% of tables)", "arms x seeds", result["tests"])
    show("Any false claim where residuals are not as assumed (% of tables)", "arms x seeds", result["assumptions"])
    show("Any false claim, with a second look at twice the seeds (% of tables)", "arms x seeds", result["second_look"])
    show("Coverage of a 95 % bootstrap over seeds (%)", "seeds", result["resampling"]["seeds"])
    show("Coverage of a 95 % bootstrap over images (%)", "images", result["resampling"]["images"])


def measure_tests(arms: int, seeds: int, tables: int) -> dict[str, float | bool]:
    """Error rates, coverage and power of one size, in percent."""
    alike = residuals(arms, seeds, tables)
    result = contrasts(alike)
    found: dict[str, float | bool] = {
        "testable": seeds >= min_seeds(arms),
        "false_claim": any_claim(result.p_holm),
        "false_claim_paired_t": any_claim(result.p_paired),
        "coverage": percent((result.interval[..., 0] <= 0) & (result.interval[..., 1] >= 0)),
    }
    for effect in EFFECTS:
        scores = alike.copy()
        scores[:, 1] += effect
        result = contrasts(scores)
        found[f"power_{effect}"] = percent((result.p_holm[:, 0] <= 0.05) & (result.estimate[:, 0] > 0))
        found[f"power_{effect}_paired_t"] = percent((result.p_paired[:, 0] <= 0.05) & (result.estimate[:, 0] > 0))
    scores = alike.copy()
    scores[:, 1:] += BOUNDARY
    found["false_equivalent"] = any_claim(contrasts(scores).p_equivalent(BOUNDARY))
    return found


def measure_assumptions(arms: int, seeds: int, tables: int) -> dict[str, float]:
    """Any claim where all arms have the same mean, pooled and paired, in percent."""
    generator = np.random.default_rng([arms, seeds, 1])
    normal = residuals(arms, seeds, tables)
    arm = np.arange(arms)[:, None]
    cases = {
        "baseline SD x 2": normal * np.where(arm == 0, 2, 1),
        "baseline SD x 3": normal * np.where(arm == 0, 3, 1),
        "baseline SD x 1/2": normal * np.where(arm == 0, 0.5, 1),
        "one arm SD x 3": normal * np.where(arm == 1, 3, 1),
        "1 run in 10 fails by 5 SD": normal - 5 * (generator.random(normal.shape) < 0.1),
        "t with 3 degrees": generator.standard_t(3, normal.shape),
    }
    found = {}
    for name, scores in cases.items():
        result = contrasts(scores)
        found[name] = any_claim(result.p_holm)
        found[f"{name}, paired"] = any_claim(result.p_paired)
    return found


def second_look(arms: int, seeds: int, tables: int) -> dict[str, float]:
    """Any claim with these seeds, and with these or twice as many, in percent."""
    scores = residuals(arms, 2 * seeds, tables)
    first = (contrasts(scores[..., :seeds]).p_holm <= 0.05).any(-1)
    second = (contrasts(scores).p_holm <= 0.05).any(-1)
    return {"one look": percent(first), "two looks": percent(first | second)}


def seed_bootstrap_coverage(seeds: int, tables: int) -> dict[str, float]:
    """Of the percentile interval from all resamples of the seeds' differences, two arms; in percent."""
    scores = residuals(2, seeds, tables)
    differences = scores[:, 1] - scores[:, 0]
    resamples = np.array(list(product(range(seeds), repeat=seeds)))
    means = differences[:, resamples].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    interval = contrasts(scores).interval[:, 0]
    return {
        "bootstrap": percent((low <= 0) & (high >= 0)),
        "t": percent((interval[:, 0] <= 0) & (interval[:, 1] >= 0)),
    }


def image_coverage(images: int, tables: int) -> dict[str, float]:
    """Of two arms whose answers to the questions of an image hang together: drawing images, and questions; percent."""
    generator = np.random.default_rng([images, 2])
    truth = 0.1
    resampling.RESAMPLES = resampling.FEWEST_RESAMPLES = 1000  # coverage needs no more, and many answer sheets
    together, apart = np.repeat(np.arange(images), QUESTIONS), np.arange(images * QUESTIONS)
    held: dict[str, list[bool]] = {"images": [], "questions": []}
    for _ in range(tables):
        chance = generator.uniform(0, 0.9, (2, images, 1)) + truth * np.arange(2).reshape(2, 1, 1)
        right = (generator.random((2, images, QUESTIONS)) < chance).reshape(2, -1)
        for name, drawn in (("images", together), ("questions", apart)):
            found = image_intervals(dict(zip("ab", right, strict=True)), drawn.tolist(), "a")["b"]
            held[name].append(found.interval[0] <= truth <= found.interval[1])
    return {name: percent(np.array(values)) for name, values in held.items()}


def residuals(arms: int, seeds: int, tables: int) -> Array:
    """Tables `[tables, arms, seeds]` of nothing but chance; what seeds do to all arms alike cancels and is left out."""
    return np.random.default_rng([arms, seeds]).standard_normal((tables, arms, seeds))


def any_claim(p: Array) -> float:
    """Percentage of tables with a claim at 0.05."""
    return percent((p <= 0.05).any(-1))


def percent(happened: NDArray[np.bool_]) -> float:
    return round(100 * float(happened.mean()), 2)


def size_name(arms: int, seeds: int) -> str:
    return f"{arms} x {seeds}"


def show(title: str, first: str, rows: dict[str, dict[str, float | bool]]) -> None:
    """Prints one table."""
    columns = list(next(iter(rows.values())))
    table = Table(first, *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(str(row[column]) if column == "testable" else f"{row[column]:.1f}" for column in columns))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
