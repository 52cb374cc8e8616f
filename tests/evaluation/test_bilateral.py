"""A film against the other breast's."""

import numpy as np
import pytest

from hmc_fast.evaluation.bilateral import bilateral_scores, patient_scores


def test_each_film_is_compared_with_its_mate_and_a_lone_one_is_not() -> None:
    result = bilateral_scores(np.array([1.0, 4.0, 7.0]), ["a", "a", "b"], ["L", "R", "L"])
    assert result.scores.tolist() == [2 * 1 - 4, 2 * 4 - 1, 7]
    assert result.compared.tolist() == [True, True, False]
    assert result.rules == ("2v - v_mate", "2v - v_mate", "v")


def test_views_are_compared_apart_and_repeats_of_a_side_averaged() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    sides, views = ["L", "R", "L", "R", "R"], ["MLO", "MLO", "CC", "CC", "CC"]
    result = bilateral_scores(scores, ["a"] * 5, sides, views)
    assert result.scores == pytest.approx([0, 3, 6 - 7, 8 - 3, 20 - 3])
    lone = bilateral_scores(scores[:2], ["a", "a"], ["L", "R"], ["MLO", "CC"])
    assert lone.scores.tolist() == [1, 2]
    assert not lone.compared.any()


def test_two_films_of_one_side_are_no_pair() -> None:
    result = bilateral_scores(np.array([1.0, 4.0]), ["a", "a"], ["L", "L"])
    assert result.scores.tolist() == [1, 4]
    assert result.rules == ("v", "v")


def test_the_order_of_films_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(40)
    patients = [f"p{i // 2}" for i in range(40)]
    sides = ["L", "R"] * 20
    order = rng.permutation(40)
    shuffled = bilateral_scores(
        scores[order], [patients[i] for i in order], [sides[i] for i in order]
    )
    assert np.array_equal(shuffled.scores, bilateral_scores(scores, patients, sides).scores[order])


def test_a_patient_is_as_suspicious_as_her_worst_film() -> None:
    names, scores = patient_scores(np.array([1.0, -2.0, -5.0]), ["b", "a", "b"])
    assert names == ("a", "b")
    assert scores.tolist() == [-2, 1]
