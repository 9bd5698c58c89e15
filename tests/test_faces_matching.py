"""The matching: against every permutation, and with people who are missing."""

from itertools import permutations

import numpy as np
import pytest

from ipro_core.faces.matching import assign, match


@pytest.mark.parametrize(
    ("rows", "columns"), [(0, 0), (0, 3), (1, 1), (1, 5), (3, 3), (2, 6), (5, 5), (4, 7)]
)
def test_the_matching_is_the_best_of_all_permutations(rows, columns):
    generator = np.random.default_rng(rows * 10 + columns)
    for trial in range(20):
        cost = generator.normal(size=(rows, columns))
        if trial % 2:  # many ties
            cost = cost.round()
        best = min(
            sum(cost[row, column] for row, column in enumerate(chosen))
            for chosen in permutations(range(columns), rows)
        )
        chosen = assign(cost)
        assert len(set(chosen)) == rows
        assert cost[np.arange(rows), chosen].sum() == pytest.approx(best)


def test_a_large_matching_equals_scipys():
    from scipy.optimize import linear_sum_assignment

    cost = np.random.default_rng(0).normal(size=(40, 60))
    rows, columns = linear_sum_assignment(cost)
    assert cost[np.arange(40), assign(cost)].sum() == pytest.approx(cost[rows, columns].sum())


def test_somebody_who_is_nowhere_is_missing_and_takes_nobodys_face():
    # Greedy gives the first row its 0.9 and the second nothing; together 0.8 + 0.7 is more.
    worth = np.array([[0.9, 0.8], [0.7, 0.1]])
    assert match(worth, missing=0.25) == [1, 0]
    assert match(np.array([[0.9, 0.2], [0.1, 0.2]]), missing=0.25) == [0, None]
    assert match(np.array([[0.9], [0.8], [0.1]]), missing=0.25) == [0, None, None]
    assert match(np.zeros((2, 0)), missing=0.25) == [None, None]


def test_a_forbidden_pair_is_never_made():
    worth = np.array([[-np.inf, 0.5], [-np.inf, 0.6]])
    assert match(worth, missing=0.0) == [None, 1]
    assert match(np.array([[-np.inf, 0.5], [0.1, 5.0]]), missing=-1.0) == [None, 1]
