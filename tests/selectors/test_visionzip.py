"""VisionZip against the published rule, written out token by token."""

import pytest
import torch

from budgetprune.ops import merge_tokens
from budgetprune.selectors import TokenView, build


def view_of(n, seed=0, batch=1, heads=3):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(batch, *shape, generator=generator) for shape in ((n, 10), (1 + n,), (heads, n, 8))]
    return TokenView(draws[0], attention=draws[1].softmax(1)[:, 1:], keys=draws[2])


def published(view, dominant, contextual):
    """The authors' rule for one sample, in double precision: (kept positions, output tokens)."""
    x, a, k = view.tokens[0].double(), view.attention[0].double(), view.keys[0].double().mean(0)
    best = sorted(a.topk(dominant).indices.tolist())
    rest = [n for n in range(len(x)) if n not in best]
    step = max(1, len(rest) // contextual)
    targets = rest[::step][:contextual]
    joined = {t: [] for t in targets}
    for j in rest:
        if j not in targets:
            cosine = torch.stack([k[j] @ k[t] / (k[j].norm() * k[t].norm()) for t in targets])
            joined[targets[int(cosine.argmax())]].append(j)
    merged = [x[t] + sum(x[j] for j in joined[t]) / max(1, len(joined[t])) for t in targets]
    return sorted(best + targets), torch.stack([*(x[n] for n in best), *merged])


@pytest.mark.parametrize("n, keep, dominant", [(576, 64, 54), (576, 128, 108), (576, 192, 162), (49, 20, 17), (7, 4, 3),
                                               (100, 99, 84), (30, 3, 3)])
def test_the_tokens_are_the_published_ones(n, keep, dominant):
    view = view_of(n, seed=n + keep)
    plan = build("visionzip").plan(view, [keep])
    assert plan.counts() == [keep]
    if dominant == keep:
        assert plan.merge is None
        assert plan.kept[0].tolist() == sorted(view.attention[0].topk(keep).indices.tolist())
        return
    kept, tokens = published(view, dominant, keep - dominant)
    assert plan.kept[0].tolist() == kept
    torch.testing.assert_close(merge_tokens(view.tokens, *plan.merge)[0].double(), tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share, dominant", [(0.0, 0), (0.5, 10), (0.9, 18)])
def test_another_share_divides_the_budget_so(share, dominant):
    view = view_of(81)
    kept, tokens = published(view, dominant, 20 - dominant)
    plan = build("visionzip", dominant_share=share).plan(view, [20])
    assert plan.kept[0].tolist() == kept
    torch.testing.assert_close(merge_tokens(view.tokens, *plan.merge)[0].double(), tokens, atol=1e-5, rtol=1e-5)


def test_samples_of_one_batch_may_have_any_budgets():
    """No contextual token, some, all tokens, none but one."""
    keep, view = [2, 20, 49, 1, 48], view_of(49, batch=5)
    together = build("visionzip").plan(view, keep)
    tokens = merge_tokens(view.tokens, *together.merge)
    assert together.counts() == keep
    for b, k in enumerate(keep):
        one = TokenView(view.tokens[b:b + 1], attention=view.attention[b:b + 1], keys=view.keys[b:b + 1])
        plan = build("visionzip").plan(one, [k])
        alone = one.tokens[:, plan.kept[0].long()] if plan.merge is None else merge_tokens(one.tokens, *plan.merge)
        torch.testing.assert_close(tokens[b, :k], alone[0])
    assert torch.equal(tokens[2], view.tokens[2])


def test_every_token_of_the_rest_is_in_one_sum_and_every_mean_weighs_one():
    matrix = build("visionzip").plan(view_of(100), [32]).merge.dense(100)[0]
    assert ((matrix != 0).sum(0) == 1).all()
    assert torch.equal(matrix[:27].sum(1), torch.ones(27)), "dominant tokens stay as they are"
    joined = (matrix[27:] != 0).sum(1) > 1
    torch.testing.assert_close(matrix[27:].sum(1), 1 + joined.float())


def test_keys_of_zeros_join_the_first_target():
    view = view_of(30)
    view.keys.zero_()
    tokens = merge_tokens(view.tokens, *build("visionzip").plan(view, [10]).merge)
    assert tokens.isfinite().all()


def test_the_operations_of_the_selection_are_counted():
    assert build("visionzip").flops(576, 1024, 64) == 2 * (576 * 1024 + 512 * 10 * 64 + 576 * 1024)
    assert build("visionzip").flops(576, 1024, 2) == 2 * 576 * 1024


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"dominant_share must be in \[0, 1\], got 1.5"):
        build("visionzip", dominant_share=1.5)
