"""PruMerge and PruMerge+ against the published rule, written out token by token."""

import pytest
import torch

from budgetprune.ops import attention_received, merge_tokens
from budgetprune.selectors import TokenView, build

H, D = 4, 6


def view_of(n, seed=0, spikes=0, batch=1):
    """A view whose CLS attention has `spikes` outliers."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, H, 1 + n, D, generator=generator)
    queries = torch.randn(batch, H, 1 + n, D, generator=generator) * 0.1
    chosen = torch.randperm(n, generator=generator)[:spikes] + 1
    keys[:, :, chosen] += 30 * queries[:, :, :1]
    a = attention_received(queries.transpose(1, 2).flatten(2)[:, None, :1], keys.transpose(1, 2).flatten(2)[:, None],
                           rows="cls")[:, 1:]
    return TokenView(torch.randn(batch, n, 10, generator=generator), attention=a, keys=keys[:, :, 1:], grid=(n, 1))


def published(view, plus):
    """The authors' rule at batch 1, one token at a time, in double precision.

    Facts: a is CLS attention of q and k as one head; outliers above Q3 + 1.5 IQR by numpy's linear percentiles; kept
    tokens in falling attention; each adds the attention-weighted 32 tokens of nearest key; a last token adds up the
    rest.
    """
    import numpy as np

    k, a = view.keys[0].transpose(0, 1).flatten(1).double(), view.attention[0].double()
    x = view.tokens[0].double()
    n = len(x)
    q1, q3 = np.percentile(a.numpy(), [25, 75])
    share = int((a > q3 + 1.5 * (q3 - q1)).sum()) / n
    index = a.topk(int(n * share)).indices.tolist()
    if plus:
        index += [i for i in range(0, n - 1, int(int(1 / share) / 3)) if i not in index]
    rows = []
    for i in index:
        cosine = torch.nn.functional.cosine_similarity(k[i][None], k, dim=1)
        cosine[i] = -2
        row = x[i].clone()
        for j in cosine.topk(min(32, n - 1)).indices.tolist():
            row += a[j] * x[j]
        rows.append(row)
    rest = [j for j in range(n) if j not in index]
    return sorted(index), torch.stack([*rows, sum((a[j] * x[j] for j in rest), torch.zeros_like(x[0]))])


@pytest.mark.parametrize("n, spikes", [(68, 4), (68, 6), (102, 4), (576, 20), (576, 40)])
@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_adaptive_count_is_exactly_as_published_at_batch_one(name, n, spikes):
    view = view_of(n, spikes=spikes)
    kept, tokens = published(view, plus=name == "prumerge_plus")
    plan = build(name).plan(view, None)
    assert plan.kept[0].tolist() == kept
    assert plan.counts() == [len(tokens)]
    torch.testing.assert_close(merge_tokens(view.tokens, *plan.merge)[0].double(), tokens, atol=1e-5, rtol=1e-5)


def test_without_any_outlier_one_token_and_the_merged_rest_stay():
    flat = view_of(40)
    flat.attention.fill_(1 / 41)
    for name, kept in (("prumerge", 1), ("prumerge_plus", 4)):  # + samples every 40 // 3 = 13th: 0, 13, 26, 39
        plan = build(name).plan(flat, None)
        assert (plan.kept[0] >= 0).sum() == kept
        assert plan.counts() == [kept + 1]


def test_more_outliers_than_a_third_sample_every_patch():
    """The published code stops here with a step of zero. 24 of 100: the quarter above Q3 is the most there can be."""
    view = view_of(100, spikes=24)
    assert build("prumerge").plan(view, None).counts() == [25]
    plan = build("prumerge_plus").plan(view, None)
    assert (plan.kept[0] >= 0).sum() == 100 and plan.counts() == [100]


@pytest.mark.parametrize("keep", [2, 3, 9, 40, 63])
@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_an_exact_budget_counts_the_extra_token_and_keeps_none_twice(name, keep):
    view = view_of(64, spikes=5)
    plan = build(name).plan(view, [keep])
    assert plan.counts() == [keep]
    assert len(set(plan.kept[0].tolist())) == plan.kept.shape[1] == keep - 1
    attention = plan.merge.dense(64)[0, -1]
    assert attention[plan.kept[0].long()].abs().max() == 0, "the extra token holds dropped ones only"
    assert (attention[~plan.mask(64)[0]] > 0).all()


def test_plus_takes_half_by_attention_and_half_evenly_spaced():
    view = view_of(64, spikes=5)
    best = set(build("prumerge").plan(view, [9]).kept[0].tolist())
    kept = build("prumerge_plus").plan(view, [17]).kept[0].tolist()
    rest = sorted(set(kept) - best)
    assert best < set(kept) and len(rest) == 8
    gaps = [b - a for a, b in zip(rest, rest[1:])]
    assert min(gaps) >= 6 and max(gaps) <= 11


def test_a_batch_counts_the_outliers_of_each_image():
    views = [view_of(64, seed=1, spikes=3), view_of(64, seed=2, spikes=9)]
    both = TokenView(**{name: torch.cat([getattr(v, name) for v in views]) for name in ("tokens", "attention", "keys")})
    for name in ("prumerge", "prumerge_plus"):
        plan, alone = build(name).plan(both, None), [build(name).plan(v, None) for v in views]
        assert plan.counts() == [p.counts()[0] for p in alone]
        for b, one in enumerate(alone):
            torch.testing.assert_close(plan.merge.dense(64)[b, : one.counts()[0]], one.merge.dense(64)[0])


@pytest.mark.parametrize("keep", [None, [5, 64, 1, 40]], ids=str)
@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_the_lists_of_a_batch_hold_the_neighbours_and_the_dropped_and_no_more(name, keep):
    """Of 64 tokens: a kept one and its 32 neighbours, then the dropped; nothing beyond a sample's own length."""
    parts = [view_of(64, seed=seed, spikes=spikes) for seed, spikes in ((1, 3), (2, 9), (3, 0), (4, 6))]
    view = TokenView(*(torch.cat([getattr(p, f) for p in parts]) for f in ("tokens", "attention", "keys")))
    plan = build(name).plan(view, keep)
    assert plan.merge.index.shape == (4, 33 * plan.kept.shape[1] + 64)
    for b, (matrix, count) in enumerate(zip(plan.merge.dense(64), plan.counts())):
        kept = plan.kept[b][plan.kept[b] >= 0]
        if keep is not None and count == 64:
            assert torch.equal(matrix, torch.eye(64))
            continue
        entries = (matrix != 0).sum(1).tolist()
        assert entries[: len(kept)] == [33] * len(kept)
        assert entries[len(kept): count] == [64 - len(kept)] * (count - len(kept))
        assert set(entries[len(kept) + 1:]) <= {0}


def test_raster_order_keeps_the_same_tokens_in_image_order():
    view = view_of(64, spikes=6)
    published_order, raster = (build("prumerge", order=o).plan(view, None) for o in ("attention", "raster"))
    assert torch.equal(published_order.kept, raster.kept)
    own = raster.merge.dense(64)[0, :-1].argmax(1)  # a 1 at its own token, less beside it
    assert own.tolist() == sorted(published_order.merge.dense(64)[0, :-1].argmax(1).tolist())


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="order must be one of 'attention', 'raster', got 'up'"):
        build("prumerge", order="up")
    with pytest.raises(ValueError, match="neighbours must be at least 0, got -1"):
        build("prumerge_plus", neighbours=-1)


def test_the_sample_of_plus_may_reach_the_last_patch():
    """Published: range(0, 575, s), written for 576 patches, leaves out the last even where the stride meets it."""
    flat = view_of(64)
    flat.attention.fill_(1 / 65)
    assert build("prumerge_plus").plan(flat, None).kept[0].tolist() == [0, 21, 42, 63]
