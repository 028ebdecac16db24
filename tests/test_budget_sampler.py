"""Budgets that training draws: their laws, their seeds, and what is refused."""

from collections import Counter
from math import log

import pytest

from budgetprune import BudgetSampler


def drawn(sampler, steps=4000):
    return Counter(sampler.draw(step, 1)[0] for step in range(steps))


def expected(counts, chances, steps=4000):
    """A bin of `steps` draws is off its chance by more than five standard deviations once in a million."""
    for k, chance in zip(counts, chances, strict=True):
        yield k, chance * steps, 5 * (steps * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("sampler, counts, chances", [
    (BudgetSampler("uniform", 2, 5), [2, 3, 4, 5], [0.25] * 4),
    (BudgetSampler("list", counts=(4, 8, 8, 16)), [4, 8, 16], [0.25, 0.5, 0.25]),
    (BudgetSampler("log_uniform", 1, 7), range(1, 8), [log((k + 1) / k) / log(8) for k in range(1, 8)]),
    (BudgetSampler("uniform", 6, 6), [6], [1.0]),
], ids=["uniform", "list", "log_uniform", "fixed"])
def test_counts_come_as_often_as_their_kind_says(sampler, counts, chances):
    seen = drawn(sampler)
    assert set(seen) == set(counts)
    for k, mean, slack in expected(counts, chances):
        assert abs(seen[k] - mean) <= slack, (k, seen[k], mean)


def test_a_step_has_one_count_or_one_for_each_sample():
    assert len(set(BudgetSampler("uniform", 1, 64).draw(3, 50))) == 1
    own = BudgetSampler("uniform", 1, 64, per_sample=True).draw(3, 50)
    assert len(own) == 50 and len(set(own)) > 20


def test_two_processes_draw_what_one_draws():
    for per_sample in (False, True):
        sampler = BudgetSampler("log_uniform", 2, 24, per_sample=per_sample, seed=5)
        assert sampler.draw(9, 8) == sampler.draw(9, 4) + sampler.draw(9, 4, first=4)


def test_seeds_and_steps_draw_apart():
    sampler = BudgetSampler("uniform", 1, 1000)
    assert sampler.draw(0, 1) == BudgetSampler("uniform", 1, 1000).draw(0, 1)
    assert len({sampler.draw(step, 1)[0] for step in range(20)}) > 15
    assert len({BudgetSampler("uniform", 1, 1000, seed=seed).draw(0, 1)[0] for seed in range(20)}) > 15


def test_these_are_the_draws_of_every_machine():
    assert BudgetSampler("uniform", 2, 24).draw(0, 2) == [12, 12]
    assert BudgetSampler("log_uniform", 1, 64, per_sample=True, seed=3).draw(7, 4) == [5, 18, 64, 33]


@pytest.mark.parametrize("arguments, match", [
    ({"kind": "normal"}, "kind must be one of 'uniform', 'log_uniform', 'list', got 'normal'"),
    ({"k_min": 0}, "k_min must be at least 1, got 0"),
    ({"k_min": 5, "k_max": 4}, "1 <= k_min <= k_max, got 5 and 4"),
    ({"k_min": 2.0, "k_max": 4}, "k_min must be an int, got 2.0"),
    ({"kind": "list"}, "counts must be a sequence of at least one count"),
    ({"kind": "list", "counts": (4, 0)}, r"counts\[1\] must be at least 1, got 0"),
    ({"k_max": 4, "counts": (4,)}, "counts must be empty where kind is 'uniform'"),
    ({"per_sample": 1}, "per_sample must be True or False, got 1"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
], ids=str)
def test_wrong_arguments_are_refused(arguments, match):
    with pytest.raises((TypeError, ValueError), match=match):
        BudgetSampler(**arguments)
