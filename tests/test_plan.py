"""A plan is data that says which tokens stay."""

import torch

from budgetprune.plan import TokenPlan


def test_a_plan_knows_its_counts_and_its_mask():
    plan = TokenPlan(torch.tensor([[0, 2], [3, -1]], dtype=torch.int32), lengths=torch.tensor([2, 1]))
    assert plan.counts() == [2, 1]
    assert plan.mask(4).tolist() == [[True, False, True, False], [False, False, False, True]]
    assert not plan.keeps_all(4)


def test_only_a_full_plan_without_merging_keeps_all():
    kept = torch.arange(3, dtype=torch.int32).expand(2, 3)
    assert TokenPlan(kept).keeps_all(3)
    assert not TokenPlan(kept).keeps_all(4)
    assert not TokenPlan(kept, merge=torch.eye(3).expand(2, 3, 3)).keeps_all(3)
    assert not TokenPlan(kept, lengths=torch.tensor([3, 2])).keeps_all(3)
