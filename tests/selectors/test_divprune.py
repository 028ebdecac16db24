"""DivPrune against the published rule, written out token by token."""

import pytest
import torch

from budgetprune.selectors import TokenView, build


def published(x, keep):
    """The authors' rule for one image, in double precision: positions in the order of their choice."""
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    chosen = []
    for _ in range(keep):
        best, farthest = None, None
        for n in range(len(x)):
            others = chosen or [m for m in range(len(x)) if m != n]
            nearest = min(float(distance[m, n]) for m in others)
            if n not in chosen and (best is None or nearest > farthest):
                best, farthest = n, nearest
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("n, keep", [(40, 1), (40, 2), (40, 17), (40, 40), (81, 30)])
def test_the_tokens_are_the_published_ones(n, keep):
    tokens = torch.randn(1, n, 12, generator=torch.Generator().manual_seed(n))
    assert build("divprune").plan(TokenView(tokens), [keep]).kept[0].tolist() == sorted(published(tokens[0], keep))


def test_samples_of_one_batch_may_have_any_budgets():
    tokens, keep = torch.randn(3, 30, 12, generator=torch.Generator().manual_seed(1)), [4, 30, 1]
    plan = build("divprune").plan(TokenView(tokens), keep)
    for row, x, k in zip(plan.kept.tolist(), tokens, keep):
        assert row == sorted(published(x, k)) + [-1] * (30 - k)


def test_of_several_copies_one_is_kept_before_any_second():
    """9 directions, each token four times in another length: 9 tokens hold every direction once."""
    directions = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(2))).Q
    tokens = torch.cat([directions * scale for scale in (1, 3, 0.5, 2)])[None]
    kept = build("divprune").plan(TokenView(tokens), [9]).kept[0]
    assert sorted((kept % 9).tolist()) == list(range(9))


def test_tokens_of_zeros_are_kept_like_any():
    tokens = torch.zeros(1, 6, 4)
    assert build("divprune").plan(TokenView(tokens), [3]).kept[0].tolist() == [0, 1, 2]


def test_the_method_wants_projected_tokens_and_nothing_else():
    method = build("divprune")
    assert method.after_projector and not method.needs and method.flops(576, 4096, 64) == 2 * 576 * 576 * 4096
