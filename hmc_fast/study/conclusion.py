"""What a report says in words: the conclusion that opens it, and the caveat beside its tables."""

from collections.abc import Sequence

from hmc_fast.evaluation import Interval
from hmc_fast.reporting import with_interval
from hmc_fast.study.compare import Group, ModelResult

CHANCE = 0.5


def conclusion(group: Group) -> str:
    """Two sentences: what the models reach by pooled AUC, and whether any two differ.

    A group of one model has the first only.
    """
    first = _against_chance(group.results)
    return first if len(group.results) == 1 else f"{first} {_between_models(group)}"


def accuracy_caveat(group: Group) -> str:
    """What a model that gives every film the commonest class scores, and which models do so."""
    result = group.results[0]
    names = result.repeats[0].class_names
    counts = [sum(row) for row in result.confusion]
    commonest = counts.index(max(counts))
    trivial = max(counts) / sum(counts)
    text = f"A model that calls everything {names[commonest]} has an accuracy of {trivial:.3f} here"
    accuracies = [r.mean_std["accuracy"] for r in group.results]
    known = [accuracy[0] for accuracy in accuracies if accuracy is not None]
    # Means over folds of unequal size differ from the share over all films in the third decimal.
    if known and max(known) < trivial + 0.005:
        text += ", the best accuracy of this table"
    constant = [r.label for r in group.results if _calls_all(r, commonest)]
    if constant:
        text += f"; {_listed(constant)} {'does' if len(constant) == 1 else 'do'} just that"
    return f"{text}. Accuracy and specificity alone say nothing of a model: read the AUC."


def _calls_all(result: ModelResult, chosen: int) -> bool:
    return all(
        count == 0 for row in result.confusion for name, count in enumerate(row) if name != chosen
    )


def _against_chance(results: Sequence[ModelResult]) -> str:
    known = [(r, r.pooled_auc) for r in results if r.pooled_auc.value is not None]
    if not known:
        return "No model has a pooled AUC, as the films of a class are missing."
    best, auc = max(known, key=lambda pair: pair[1].value or 0)
    above = [r.label for r, interval in known if (interval.low or 0) > CHANCE]
    shown = f"{best.label}, pooled AUC {with_interval(auc.value, auc.low, auc.high)}"
    if len(results) == 1:
        verb = "ranks films better than chance" if above else "is not better than chance"
        return f"{best.label} {verb}: its pooled AUC is {shown.split('AUC ')[1]}."
    if not above:
        return f"No model is better than chance; the highest is {shown}."
    if len(above) == len(results):
        return f"All {len(results)} models rank films better than chance; the best is {shown}."
    return f"Better than chance: {_listed(above)}; the best is {shown}."


def _between_models(group: Group) -> str:
    differing = [pair for pair in group.pairs if _excludes_zero(pair.auc_difference)]
    if not differing:
        return (
            "No two models can be told apart by their pooled AUC (95 % intervals of differences)."
        )
    widest = max(differing, key=lambda pair: abs(pair.auc_difference.value or 0))
    better, worse = widest.first, widest.second
    if (widest.auc_difference.value or 0) < 0:
        better, worse = worse, better
    return (
        f"{len(differing)} of {len(group.pairs)} pairs differ by their 95 % intervals, uncorrected "
        f"for their number, most of all {better} from {worse}, which is "
        f"{abs(widest.auc_difference.value or 0):.3f} lower."
    )


def _excludes_zero(interval: Interval) -> bool:
    return (
        interval.low is not None
        and interval.high is not None
        and (interval.low > 0 or interval.high < 0)
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
