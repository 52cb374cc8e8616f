"""Tests that compare models on the same films and folds.

Friedman with Nemenyi (Demšar 2006) mirrors the usual table over folds. DeLong's test (1988) and the
corrected resampled t-test (Nadeau & Bengio 2003) are checks on pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

PERMUTATIONS = 20_000
ALPHA = 0.05


@dataclass(frozen=True)
class FriedmanTest:
    """Ranks of ``k`` models over ``n`` blocks, the first rank the best.

    ``chi2`` is corrected for ties; ``iman_davenport_f`` and its p-value are None where every block
    ranks the models alike, so that F is infinite. ``monte_carlo_p`` permutes within blocks.
    ``critical_difference`` is Nemenyi's at ``ALPHA``, ``pairwise_p`` ``[k, k]`` its p-values.
    """

    blocks: int
    mean_ranks: list[float]
    chi2: float
    chi2_p: float
    iman_davenport_f: float | None
    iman_davenport_p: float | None
    monte_carlo_p: float
    critical_difference: float
    pairwise_p: list[list[float]]

    @property
    def largest_gap(self) -> int:
        """The largest difference of mean ranks that can occur, ``k - 1``."""
        return len(self.mean_ranks) - 1


def friedman_nemenyi(values: NDArray[np.float64], seed: int = 0) -> FriedmanTest:
    """Friedman's test and Nemenyi's comparisons.

    Args:
        values: ``[blocks, models]``, larger is better; at least 2 blocks and 3 models.
        seed: of the permutations.

    Raises ``ValueError`` for fewer blocks or models, or a value that is not finite.
    """
    blocks, models = values.shape
    if blocks < 2 or models < 3:
        raise ValueError("Friedman's test needs at least 2 folds and 3 models")
    if not np.isfinite(values).all():
        raise ValueError("a model has no value in some fold")
    ranks = stats.rankdata(-values, axis=1)
    chi2 = float(_friedman_chi2(ranks[None])[0])
    freedom = models - 1
    rest = blocks * freedom - chi2
    f = (blocks - 1) * chi2 / rest if rest > 1e-9 else None
    standard_error = np.sqrt(models * (models + 1) / (6 * blocks))
    mean_ranks = ranks.mean(0)
    gaps = np.abs(mean_ranks[:, None] - mean_ranks[None, :])
    q = stats.studentized_range.ppf(1 - ALPHA, models, np.inf) / np.sqrt(2)
    pairwise = stats.studentized_range.sf(gaps / standard_error * np.sqrt(2), models, np.inf)
    return FriedmanTest(
        blocks=blocks,
        mean_ranks=[float(rank) for rank in mean_ranks],
        chi2=chi2,
        chi2_p=float(stats.chi2.sf(chi2, freedom)),
        iman_davenport_f=None if f is None else float(f),
        iman_davenport_p=(
            None if f is None else float(stats.f.sf(f, freedom, freedom * (blocks - 1)))
        ),
        monte_carlo_p=_monte_carlo_p(ranks, chi2, seed),
        critical_difference=float(q * standard_error),
        pairwise_p=[[float(p) for p in row] for row in pairwise],
    )


def delong_p(
    first: NDArray[np.float64], second: NDArray[np.float64], labels: NDArray[np.integer]
) -> float | None:
    """Two-sided p-value of DeLong's test for equal AUC of two scores of the same films.

    It takes films as independent, which the films of one patient are not. None where the
    difference has no variance.

    Args:
        first: scores ``[films]``, larger for the positive class.
        second: as ``first``.
        labels: ``[films]``, 1 for the positive class and 0 for the other.
    """
    positive = np.asarray(labels) == 1
    by_positive, by_negative = [], []
    for scores in (first, second):
        wins = np.sign(scores[positive][:, None] - scores[~positive][None, :]) / 2 + 0.5
        by_positive.append(wins.mean(1))
        by_negative.append(wins.mean(0))
    difference = float(by_positive[0].mean() - by_positive[1].mean())
    variance = 0.0
    for first_part, second_part in (by_positive, by_negative):
        if len(first_part) < 2:
            return None
        variance += float(np.var(first_part - second_part, ddof=1)) / len(first_part)
    if variance <= 0:
        return None
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def corrected_resampled_p(differences: NDArray[np.float64], test_share: float) -> float | None:
    """Two-sided p-value of the corrected resampled t-test of Nadeau & Bengio.

    Training sets of folds overlap, so the variance of the mean is widened from ``1/n`` to ``1/n``
    plus test films per training film. None where the differences have no variance.

    Args:
        differences: of a metric, one a fold (of all repeats).
        test_share: test films per training film, ``1/(k-1)`` for k folds.
    """
    count = len(differences)
    if count < 2:
        return None
    variance = float(np.var(differences, ddof=1))
    if variance <= 0:
        return None
    t = float(np.mean(differences)) / np.sqrt((1 / count + test_share) * variance)
    return float(2 * stats.t.sf(abs(t), count - 1))


def _friedman_chi2(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each ``[blocks, models]`` in ``ranks [tables, blocks, models]``; 0 where all tie."""
    _, blocks, models = ranks.shape
    centre = (models + 1) / 2
    between = blocks * ((ranks.mean(1) - centre) ** 2).sum(1)
    within = ((ranks - centre) ** 2).sum((1, 2)) / (blocks * (models - 1))
    return np.asarray(between / np.where(within > 0, within, 1))


def _monte_carlo_p(ranks: NDArray[np.float64], chi2: float, seed: int) -> float:
    """How often ranks permuted within blocks reach ``chi2`` (Phipson & Smyth 2010: plus one)."""
    rng = np.random.default_rng(seed)
    tables = np.broadcast_to(ranks, (PERMUTATIONS, *ranks.shape))
    reached = _friedman_chi2(rng.permuted(tables, axis=2)) >= chi2 - 1e-9
    return float((1 + reached.sum()) / (1 + PERMUTATIONS))
