"""Metrics against scikit-learn, intervals against a plain bootstrap, tables against themselves."""

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from hmc_fast import UserError
from hmc_fast.evaluation import (
    METRIC_NAMES,
    Predictions,
    auc_interval,
    classification_metrics,
    mean_and_std,
    pool,
    read_predictions,
)


def draw(classes: int, films: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, films)
    logits = rng.normal(size=(films, classes)).round(1) + 0.7 * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def test_two_classes_agree_with_scikit_learn() -> None:
    probabilities, labels = draw(2)
    decisions = probabilities[:, 1] > 0.5
    expected = {
        "accuracy": sk.accuracy_score(labels, decisions),
        "precision": sk.precision_score(labels, decisions),
        "recall": sk.recall_score(labels, decisions),
        "f1": sk.f1_score(labels, decisions),
        "auc_roc": sk.roc_auc_score(labels, probabilities[:, 1]),
        "specificity": sk.recall_score(labels, decisions, pos_label=0),
    }
    assert classification_metrics(probabilities, labels) == pytest.approx(expected)


def test_three_classes_agree_with_scikit_learn() -> None:
    probabilities, labels = draw(3)
    decisions = probabilities.argmax(1)
    confusion = sk.multilabel_confusion_matrix(labels, decisions)
    expected = {
        "accuracy": sk.accuracy_score(labels, decisions),
        "precision": sk.precision_score(labels, decisions, average="macro"),
        "recall": sk.recall_score(labels, decisions, average="macro"),
        "f1": sk.f1_score(labels, decisions, average="macro"),
        "auc_roc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "specificity": np.mean(confusion[:, 0, 0] / confusion[:, 0].sum(1)),
    }
    assert classification_metrics(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_auc_is_undefined_without_both_classes() -> None:
    probabilities, _ = draw(2, 5)
    result = classification_metrics(probabilities, np.zeros(5, int))
    assert result["auc_roc"] is None
    assert auc_interval(probabilities, np.zeros(5, int), list("abcde")).value is None
    folds = [result, classification_metrics(*draw(2))]
    summary = mean_and_std(folds)
    assert summary["auc_roc"] is None
    assert summary["accuracy"] == pytest.approx(
        (np.mean([f["accuracy"] for f in folds]), np.std([f["accuracy"] for f in folds], ddof=1))
    )


def test_the_interval_is_a_bootstrap_over_patients() -> None:
    probabilities, labels = draw(2, 80)
    patients = [f"p{i // 2}" for i in range(80)]
    interval = auc_interval(probabilities, labels, patients, seed=3)
    assert interval.value == pytest.approx(sk.roc_auc_score(labels, probabilities[:, 1]))
    rng = np.random.default_rng(0)
    values = []
    for _ in range(1000):
        drawn = rng.integers(0, 40, 40)
        index = np.concatenate([[2 * p, 2 * p + 1] for p in drawn])
        values.append(sk.roc_auc_score(labels[index], probabilities[index, 1]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.02)
    assert interval.high == pytest.approx(high, abs=0.02)


def test_the_same_film_twice_for_each_patient_does_not_narrow_the_interval() -> None:
    probabilities, labels = draw(2, 60)
    single = auc_interval(probabilities, labels, [f"p{i}" for i in range(60)])
    doubled = auc_interval(
        np.repeat(probabilities, 2, 0), np.repeat(labels, 2), [f"p{i // 2}" for i in range(120)]
    )
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high), abs=0.015)


def predictions(films: range, fold: int) -> Predictions:
    _, labels = draw(2, len(films))
    logits = np.random.default_rng(fold).normal(size=(len(films), 2))
    return Predictions(
        tuple(f"f{i}" for i in films),
        tuple(f"p{i // 2}" for i in films),
        (fold,) * len(films),
        labels,
        logits,
        ("rest", "malignant"),
    )


def test_tables_come_back_exactly_and_pool(tmp_path: Path) -> None:
    parts = [predictions(range(10), 0), predictions(range(10, 24), 1)]
    pooled = pool(parts)
    pooled.save(tmp_path / "oof.csv")
    reread = read_predictions(tmp_path / "oof.csv")
    np.testing.assert_array_equal(reread.logits, pooled.logits)
    np.testing.assert_array_equal(reread.labels, pooled.labels)
    assert reread.films == pooled.films
    for part, again in zip(parts, reread.by_fold(), strict=True):
        assert part.films == again.films
        assert list(part.metrics()) == list(METRIC_NAMES)
        assert part.metrics() == again.metrics()


def test_doubled_and_damaged_tables_are_refused(tmp_path: Path) -> None:
    part = predictions(range(6), 0)
    with pytest.raises(UserError, match="film f0 is predicted twice"):
        pool([part, part])
    path = tmp_path / "oof.csv"
    part.save(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(UserError, match="film f0 is predicted twice"):
        read_predictions(path)
    for damage, message in (
        (lines[1].rsplit(",", 3)[0], "line 2: has more or fewer cells"),
        (f"{lines[1]},1", "line 2: has more or fewer cells"),
        ("x" * 131_073 + lines[1], "no CSV table in UTF-8 .field larger"),
        (f'"{lines[1]}', "no CSV table in UTF-8 .unexpected end"),
        (lines[1].replace(",0,", ",one,"), "no readable prediction table"),
        (lines[1].replace("rest", "best").replace("malignant", "best"), "no readable prediction"),
    ):
        path.write_text(f"{lines[0]}\n{damage}\n")
        with pytest.raises(UserError, match=message):
            read_predictions(path)
    path.write_text(f"{lines[0]},film\n{lines[1]},f0\n")
    with pytest.raises(UserError, match="doubled column 'film'"):
        read_predictions(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no prediction"):
        read_predictions(path)
