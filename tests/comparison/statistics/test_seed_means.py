"""Means over seeds with t intervals."""

import numpy as np
import pytest
from scipy import stats

from fvl_lightning.comparison.statistics.seed_means import seed_means


def test_it_is_the_t_test_of_each_quantity_on_the_seeds_that_have_it() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.2, (5, 2, 3))
    values[3, 1, 2] = np.nan
    found = seed_means(values)
    for place in np.ndindex(2, 3):
        known = values[:, *place][np.isfinite(values[:, *place])]
        test = stats.ttest_1samp(known, 0)
        assert found.seeds[place] == len(known)
        assert found.mean[place] == pytest.approx(known.mean())
        assert found.p[place] == pytest.approx(test.pvalue)
        assert found.interval[place] == pytest.approx(tuple(test.confidence_interval()))


@pytest.mark.parametrize("values", [[[0.3]], [[0.3], [0.3], [0.1 + 0.2]], [[np.nan], [0.3]]])
def test_one_seed_and_seeds_that_do_not_vary_have_no_interval(values: list[list[float]]) -> None:
    found = seed_means(values)
    assert found.mean == pytest.approx([0.3])
    assert np.isnan(found.interval).all()
    assert np.isnan(found.p).all()


def test_nothing_known_is_no_number() -> None:
    assert np.isnan(seed_means([[np.nan], [np.nan]]).mean).all()
