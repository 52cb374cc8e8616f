"""The tables of a study report, as plain text cells that every format can carry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmc_fast.evaluation import METRIC_NAMES, Interval
from hmc_fast.evaluation.comparison import FriedmanTest
from hmc_fast.evaluation.localisation import METRICS
from hmc_fast.reporting import DASH, metric_title, plus_minus
from hmc_fast.study.compare import Group


@dataclass(frozen=True)
class Table:
    """A header, rows of cells, and what a reader has to know."""

    header: list[str]
    rows: list[list[str]]
    note: str = ""


def metrics_table(group: Group) -> Table:
    """The paper's six metrics over folds, and the pooled AUC."""
    rows = []
    for result in group.results:
        values = [result.mean_std[name] for name in METRIC_NAMES]
        cells = [plus_minus(*v) if v else DASH for v in values]
        rows.append([result.label, *cells, str(result.pooled_auc)])
    return Table(
        ["model", *map(metric_title, METRIC_NAMES), "pooled AUC [95 % CI]"],
        rows,
        "Mean ± sample standard deviation over folds; a dash where a fold leaves a metric "
        "undefined. AUC-ROC is the mean of the folds' AUCs: each ranks the few films of one "
        "fold, by one model, so it varies much and does not see whether the folds' models score "
        "on one scale. The pooled AUC ranks all held-out films together, whichever model scored "
        "them; it has a patient-cluster bootstrap interval and is the figure to read. With "
        "repeats it is their mean.",
    )


def calibration_table(group: Group) -> Table:
    """Brier score, ECE and temperature."""
    rows = []
    for result in group.results:
        c = result.calibration
        low, high = min(c.temperatures), max(c.temperatures)
        rows.append(
            [
                result.label,
                f"{c.brier:.4f}",
                f"{c.ece:.4f}",
                f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}",
                f"{c.scaled_brier:.4f}",
                f"{c.scaled_ece:.4f}",
            ]
        )
    return Table(
        ["model", "Brier", "ECE", "temperature", "Brier scaled", "ECE scaled"],
        rows,
        "Each fold's temperature is fitted on the out-of-fold predictions of the other folds. A "
        "model trained with a balanced loss overstates a rare class by design, which a "
        "temperature cannot undo.",
    )


def pairs_table(group: Group) -> Table:
    """Differences of pooled AUC and their checks."""
    rows = [
        [
            f"{pair.first} - {pair.second}",
            _difference(pair.auc_difference),
            _p(pair.delong_p),
            _p(pair.nadeau_bengio_p),
        ]
        for pair in group.pairs
    ]
    return Table(
        ["pair", "difference of pooled AUC [95 % CI]", "DeLong p", "Nadeau-Bengio p"],
        rows,
        "The interval draws the same patients for both models. The p-values are checks, without "
        "correction for the number of pairs: DeLong's takes the films of a patient as independent "
        "(first repeat), Nadeau and Bengio's compares AUCs over folds.",
    )


def friedman_table(group: Group) -> Table:
    """Friedman's test of every metric."""
    rows = []
    for metric, test in group.friedman.items():
        if isinstance(test, str):
            rows.append([metric_title(metric), test, *[DASH] * 5])
            continue
        f = test.iman_davenport_f
        best = group.results[test.mean_ranks.index(min(test.mean_ranks))].label
        rows.append(
            [
                metric_title(metric),
                f"{test.chi2:.3f}",
                _p(test.chi2_p),
                DASH if f is None else f"{f:.3f}",
                _p(test.iman_davenport_p),
                _p(test.monte_carlo_p),
                f"{best} ({min(test.mean_ranks):.2f})",
            ]
        )
    return Table(
        ["metric", "χ²", "p", "Iman-Davenport F", "p (F)", "p (Monte Carlo)", "best mean rank"],
        rows,
        "Blocks are the folds of the first repeat; those of further repeats share its films, and "
        "counting them would overstate the evidence. With few folds trust the Monte Carlo p.",
    )


def nemenyi_table(labels: Sequence[str], test: FriedmanTest) -> Table:
    """p-values of all pairs."""
    rows = [
        [f"{label} ({rank:.2f})", *(f"{p:.3f}" for p in row)]
        for label, rank, row in zip(labels, test.mean_ranks, test.pairwise_p, strict=True)
    ]
    return Table(["model (mean rank)", *labels], rows, detectable_gap(test))


def detectable_gap(test: FriedmanTest) -> str:
    """How large a difference of mean ranks has to be."""
    k, n = len(test.mean_ranks), test.blocks
    return (
        f"Smallest detectable gap of mean ranks with {k} models and {n} folds at α = .05: "
        f"{test.critical_difference:.2f} of {test.largest_gap} possible. Smaller gaps are no "
        "evidence of a difference, nor of its absence."
    )


def ensemble_table(group: Group) -> Table | None:
    """What averaging over repeats brings; None with one repeat."""
    rows = [
        [r.label, str(r.pooled_auc), str(r.ensemble_auc), _difference(r.ensemble_gain)]
        for r in group.results
        if r.ensemble_auc is not None and r.ensemble_gain is not None
    ]
    if not rows:
        return None
    return Table(
        ["model", "single, pooled AUC", "ensemble of repeats, pooled AUC", "gain [95 % CI]"],
        rows,
        "A film's ensemble averages the models of all repeats that held the film out.",
    )


def localisation_table(group: Group) -> Table | None:
    """How good the maps are, a row for each method; None where nothing was measured."""
    rows = []
    films = []
    for result in group.results:
        scores = result.localisation
        if scores is None:
            continue
        films.append(f"{result.label} {scores['films']} of {scores['patients']} patients")
        for method, values in scores["methods"].items():
            cells = [_interval(values[metric]) for metric in METRICS]
            sanity = values["sanity"]["rank_correlation"]["value"]
            cells.append(DASH if sanity is None else f"{sanity:+.2f}")
            rows.append([result.label, method, *cells])
        for name, values in scores["baselines"].items():
            cells = [_interval(values[m]) if m in values else DASH for m in METRICS]
            rows.append([result.label, f"{name}, no model", *cells, DASH])
    if not rows:
        return None
    return Table(
        [
            "model",
            "map",
            "pointing game",
            "energy in the lesion",
            "deletion AUC",
            "insertion AUC",
            "sanity",
        ],
        rows,
        "Means over annotated films of patients that a checkpoint was not trained on, with "
        f"patient-cluster bootstrap 95 % intervals; films: {'; '.join(films)}. Deletion: smaller "
        "is better. Insertion: larger is better. Sanity: mean rank correlation with the map of "
        "shuffled weights, near 0 for a map that depends on what was learned.",
    )


def _interval(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return DASH
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _difference(interval: Interval) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return DASH
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _p(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.3f}" if value >= 0.001 else "< .001"
