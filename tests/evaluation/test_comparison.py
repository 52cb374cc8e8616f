"""Friedman, Nemenyi, DeLong and Nadeau-Bengio against independent implementations."""

import numpy as np
import pytest
import scikit_posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hmc_fast.evaluation.comparison import corrected_resampled_p, delong_p, friedman_nemenyi

tables = st.tuples(st.integers(2, 8), st.integers(3, 8), st.integers(0, 10_000))


def draw(blocks: int, models: int, seed: int, levels: int = 5) -> np.ndarray:
    """Values with many ties."""
    return np.random.default_rng(seed).integers(0, levels, (blocks, models)).astype(float)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_friedman_and_nemenyi_agree_with_scipy_and_scikit_posthocs(
    shape: tuple[int, int, int],
) -> None:
    values = draw(*shape)
    if (values == values[:, :1]).all():
        return
    ours = friedman_nemenyi(values)
    theirs = stats.friedmanchisquare(*values.T)
    assert ours.chi2 == pytest.approx(theirs.statistic)
    assert ours.chi2_p == pytest.approx(theirs.pvalue)
    pairwise = scikit_posthocs.posthoc_nemenyi_friedman(values).to_numpy()
    np.testing.assert_allclose(ours.pairwise_p, np.clip(pairwise, 0, 1), atol=1e-6)


def test_iman_davenport_is_friedman_by_analysis_of_variance_of_ranks() -> None:
    values = draw(6, 5, 3, levels=1000)
    ours = friedman_nemenyi(values)
    ranks = stats.rankdata(-values, axis=1)
    treatment = 6 * ((ranks.mean(0) - 3) ** 2).sum() / 4
    residual = ((ranks - ranks.mean(0)) ** 2).sum() / (5 * 4)
    assert ours.iman_davenport_f == pytest.approx(treatment / residual)
    assert ours.iman_davenport_p == pytest.approx(stats.f.sf(treatment / residual, 4, 20))


def test_monte_carlo_p_is_the_exact_one_on_a_small_table() -> None:
    from itertools import permutations, product

    values = np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]])
    ours = friedman_nemenyi(values)
    chi2 = [
        stats.friedmanchisquare(*np.array(rows).T).statistic
        for rows in product(permutations((1.0, 2.0, 3.0)), repeat=3)
    ]
    assert ours.monte_carlo_p == pytest.approx(
        np.mean(np.array(chi2) >= ours.chi2 - 1e-9), abs=0.01
    )
    assert friedman_nemenyi(values).monte_carlo_p == ours.monte_carlo_p


def test_the_critical_difference_of_the_paper_s_design() -> None:
    test = friedman_nemenyi(draw(5, 7, 0, levels=1000))
    assert test.critical_difference == pytest.approx(4.03, abs=0.005)
    assert test.largest_gap == 6


def test_a_unanimous_ranking_has_no_finite_f() -> None:
    test = friedman_nemenyi(np.tile([3.0, 2.0, 1.0], (5, 1)))
    assert test.mean_ranks == [1, 2, 3]
    assert test.chi2 == pytest.approx(10)
    assert test.iman_davenport_f is None
    assert test.monte_carlo_p < 0.01


def test_tables_that_are_too_small_or_incomplete() -> None:
    for values in (np.ones((1, 3)), np.ones((5, 2))):
        with pytest.raises(ValueError, match="at least 2 folds and 3 models"):
            friedman_nemenyi(values)
    with pytest.raises(ValueError, match="no value in some fold"):
        friedman_nemenyi(np.array([[1, 2, np.nan], [1, 2, 3]]))
    assert friedman_nemenyi(np.ones((4, 3))).chi2 == 0


def naive_delong(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> float:
    """Structural components by loops, covariances by numpy."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)

    def kernel(a: float, b: float) -> float:
        return 1.0 if a > b else 0.5 if a == b else 0.0

    both = (first, second)
    v10 = [[np.mean([kernel(s[i], s[j]) for j in negatives]) for i in positives] for s in both]
    v01 = [[np.mean([kernel(s[i], s[j]) for i in positives]) for j in negatives] for s in both]
    covariance = np.cov(v10) / len(positives) + np.cov(v01) / len(negatives)
    contrast = np.array([1, -1])
    z = (np.mean(v10[0]) - np.mean(v10[1])) / np.sqrt(contrast @ covariance @ contrast)
    return float(2 * stats.norm.sf(abs(z)))


@pytest.mark.parametrize("seed", range(5))
def test_delong_agrees_with_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    first = (labels + rng.normal(size=60)).round(1)
    second = (0.3 * labels + 0.5 * first + rng.normal(size=60)).round(1)
    assert delong_p(first, second, labels) == pytest.approx(naive_delong(first, second, labels))


def test_delong_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        labels = rng.integers(0, 2, 80)
        scores = labels[:, None] + rng.normal(size=(80, 2))
        values.append(delong_p(scores[:, 0], scores[:, 1], labels))
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.03)
    same = scores[:, 0]
    assert delong_p(same, same, labels) is None


def test_the_corrected_t_test_is_the_paired_one_without_overlap() -> None:
    differences = np.random.default_rng(0).normal(0.2, 1, 10)
    plain = stats.ttest_1samp(differences, 0)
    assert corrected_resampled_p(differences, 0) == pytest.approx(plain.pvalue)
    widened = corrected_resampled_p(differences, 1 / 9)
    factor = np.sqrt((1 / 10) / (1 / 10 + 1 / 9))
    assert widened == pytest.approx(2 * stats.t.sf(abs(plain.statistic) * factor, 9))
    assert corrected_resampled_p(np.ones(5), 0.25) is None
    assert corrected_resampled_p(np.ones(1), 0.25) is None
