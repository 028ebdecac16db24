"""VisPruner against the published rule, written out token by token."""

import pytest
import torch

from budgetprune.selectors import TokenView, build


def view_of(n, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    tokens, a = (torch.randn(batch, *shape, generator=generator) for shape in ((n, 12), (1 + n,)))
    return TokenView(tokens, attention=a.softmax(1)[:, 1:])


def published(x, a, keep, share=0.5, per_round=8):
    """The authors' rule for one image, in double precision."""
    x = x.double()
    order = sorted(range(len(x)), key=lambda n: -float(a[n]))
    important, others = order[: int(keep * share)], order[int(keep * share):]
    diverse = keep - len(important)
    if diverse == 0:
        return sorted(important)
    while len(others) > diverse:
        compared, between = others[::2], others[1::2]
        closest = {i: max(float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in between) for i in compared}
        falling = sorted(compared, key=lambda i: -closest[i])
        others = falling[min(per_round, len(others) - diverse, len(others) // 2):] + between
    return sorted(important + others)


@pytest.mark.parametrize("n, keep", [(64, 1), (64, 2), (64, 16), (64, 32), (64, 63), (64, 64), (49, 9), (5, 2), (1, 1)])
def test_the_tokens_are_the_published_ones(n, keep):
    view = view_of(n, seed=n + keep)
    kept = build("vispruner").plan(view, [keep]).kept[0].tolist()
    assert kept == published(view.tokens[0], view.attention[0], keep)


@pytest.mark.parametrize("share, per_round", [(0.0, 8), (0.3, 5), (1.0, 8), (0.5, 1), (0.5, 100)])
def test_options_do_what_they_say(share, per_round):
    view = view_of(50)
    kept = build("vispruner", important_share=share, per_round=per_round).plan(view, [17]).kept[0].tolist()
    assert kept == published(view.tokens[0], view.attention[0], 17, share, per_round)


def test_samples_of_one_batch_may_have_any_budgets():
    keep, view = [3, 40, 1, 25, 14], view_of(40, batch=5)
    plan = build("vispruner").plan(view, keep)
    assert plan.counts() == keep
    for b, k in enumerate(keep):
        assert plan.kept[b].tolist() == published(view.tokens[b], view.attention[b], k) + [-1] * (40 - k)


def test_the_important_half_is_always_kept():
    view = view_of(60)
    kept = set(build("vispruner").plan(view, [20]).kept[0].tolist())
    assert set(view.attention[0].topk(10).indices.tolist()) <= kept


def test_of_pairs_of_copies_one_of_each_stays():
    """20 tokens twice, one after the other in attention: every round compares each with its copy."""
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(3)).repeat_interleave(2, dim=0)
    view = TokenView(x[None], attention=torch.linspace(1, 0.1, 40)[None])
    kept = build("vispruner", important_share=0.0, per_round=20).plan(view, [20]).kept[0]
    assert (kept // 2).tolist() == list(range(20))


def test_the_operations_of_the_selection_are_counted():
    assert build("vispruner").flops(576, 1024, 64) == 2 * (576 * 1024 + 576 * 576 * 1024)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"important_share must be in \[0, 1\], got -0.1"):
        build("vispruner", important_share=-0.1)
    with pytest.raises(ValueError, match="per_round must be at least 1, got 0"):
        build("vispruner", per_round=0)
