"""A plan is data that says which tokens stay."""

import torch

from budgetprune.plan import MergeLists, TokenPlan


def test_a_plan_knows_its_counts_and_its_mask():
    plan = TokenPlan(torch.tensor([[0, 2], [3, -1]], dtype=torch.int32), lengths=torch.tensor([2, 1]))
    assert plan.counts() == [2, 1]
    assert plan.mask(4).tolist() == [[True, False, True, False], [False, False, False, True]]
    assert not plan.keeps_all(4)


def test_only_a_full_plan_without_merging_keeps_all():
    kept = torch.arange(3, dtype=torch.int32).expand(2, 3)
    assert TokenPlan(kept).keeps_all(3)
    assert not TokenPlan(kept).keeps_all(4)
    own = MergeLists(torch.arange(4, dtype=torch.int32).expand(2, 4), kept, torch.ones(2, 3))
    assert torch.equal(own.dense(3), torch.eye(3).expand(2, 3, 3))
    assert not TokenPlan(kept, merge=own).keeps_all(3)
    assert not TokenPlan(kept, lengths=torch.tensor([3, 2])).keeps_all(3)


def test_lists_are_the_rows_of_a_matrix():
    offsets = torch.tensor([[0, 2, 2, 5], [1, 2, 3, 3]], dtype=torch.int32)
    index = torch.tensor([[0, 3, 1, -1, 1], [2, 0, 2, 1, 1]], dtype=torch.int32)
    lists = MergeLists(offsets, index, torch.tensor([[1.0, 2, 3, 4, 5], [9, 6, 7, 9, 9]]))
    assert lists.width == 3 and TokenPlan(index[:, :1], merge=lists).width == 3
    assert lists.dense(4).tolist() == [[[1, 0, 0, 2], [0, 0, 0, 0], [0, 8, 0, 0]],  # 3 + 5 for token 1; -1 is none
                                       [[6, 0, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0]]]  # entries 0, 3 and 4 are in no list


def test_a_partition_puts_each_token_in_its_one_list():
    member = torch.tensor([[2, 0, 3, 2, 0], [0, 1, 1, 3, 3]])  # 3 is no list; the second sample has no list 2
    weight = torch.tensor([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 9]])
    lists = MergeLists.partition(member, weight, 3)
    assert lists.offsets.dtype == lists.index.dtype == torch.int32
    assert lists.dense(5).tolist() == [[[0, 2, 0, 0, 5], [0, 0, 0, 0, 0], [1, 0, 0, 4, 0]],
                                       [[6, 0, 0, 0, 0], [0, 7, 8, 0, 0], [0, 0, 0, 0, 0]]]
