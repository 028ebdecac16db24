"""The one rounding rule, and what a budget may be."""

import subprocess
import sys

import pytest

from budgetprune.budget import TokenBudget


@pytest.mark.parametrize("tokens, ratio, count", [
    (576, 0.5, 288), (576, 0.25, 144), (10, 0.1, 1), (10, 0.05, 1), (10, 0.25, 2), (10, 0.35, 4), (64, 0.0, 1),
    (5, 1.0, 5),
])
def test_a_ratio_becomes_the_rounded_count_and_at_least_one(tokens, ratio, count):
    assert TokenBudget.from_ratio(tokens, ratio) == count
    assert TokenBudget(ratio).count(tokens) == count


def test_zero_keeps_one_and_too_many_keep_all():
    assert TokenBudget(0).count(9) == 1
    assert TokenBudget(10).count(9) == TokenBudget(9).count(9) == 9


def test_one_amount_serves_all_samples_and_several_serve_one_each():
    assert TokenBudget(4).counts([9, 3]) == [4, 3]
    assert TokenBudget([2, 0.5]).counts([9, 10]) == [2, 5]
    with pytest.raises(ValueError, match="keep must have 3 entries, one per sample, got 2"):
        TokenBudget([1, 2]).counts([9, 9, 9])


@pytest.mark.parametrize("keep, error, match", [
    (-1, ValueError, "keep must be at least 0, got -1"), (1.2, ValueError, r"in \[0, 1\], got 1.2"),
    (True, TypeError, "got bool"), ("4", TypeError, "got str"), ([], ValueError, "at least one amount"),
    ([1, None], TypeError, "got NoneType"), (float("nan"), ValueError, "got nan"),
])
def test_bad_budgets_are_refused_by_name(keep, error, match):
    with pytest.raises(error, match=match):
        TokenBudget(keep)


def test_a_budget_costs_no_import_of_torch():
    code = "import sys, budgetprune.budget, budgetprune.cost; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
