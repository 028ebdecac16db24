"""ToMe against the published matching, written out token by token and round by round."""

import math

import pytest
import torch

from budgetprune.ops import merge_tokens
from budgetprune.selectors import TokenView, build
from budgetprune.selectors.tome import merges


def view_of(n, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    tokens, keys = (torch.randn(batch, *shape, generator=generator) for shape in ((n, 12), (3, n, 8)))
    return TokenView(tokens, keys=keys)


def published(x, keys, keep, rounds=24):
    """Rounds of the authors' matching for one image, in double precision, with averages weighted by size:
    (members of each output token, output tokens), in the order of first members."""
    clusters = [([n], x[n].double(), keys[:, n].double().mean(0)) for n in range(len(x))]
    r = math.ceil((len(x) - keep) / rounds)
    while len(clusters) > keep:
        even, odd = list(clusters[::2]), list(clusters[1::2])
        cosine = [[float(torch.cosine_similarity(e[2], o[2], dim=0)) for o in odd] for e in even]
        falling = sorted((i for i in range(len(even)) if odd), key=lambda i: -max(cosine[i]))
        merged = falling[: min(r, len(clusters) - keep, len(clusters) // 2)]
        for i in merged:
            j = cosine[i].index(max(cosine[i]))
            (a, xa, ka), (b, xb, kb) = even[i], odd[j]
            size = len(a) + len(b)
            odd[j] = (a + b, (len(a) * xa + len(b) * xb) / size, (len(a) * ka + len(b) * kb) / size)
        clusters = [e for i, e in enumerate(even) if i not in merged] + odd
    clusters.sort(key=lambda cluster: min(cluster[0]))
    return [sorted(members) for members, _, _ in clusters], torch.stack([token for _, token, _ in clusters])


def same_as_published(plan, b, view, keep, rounds=24):
    members, tokens = published(view.tokens[b], view.keys[b], keep, rounds)
    assert plan.kept[b][plan.kept[b] >= 0].tolist() == [m[0] for m in members]
    matrix = plan.merge.dense(view.tokens.shape[1])[b, :keep]
    assert [row.nonzero().flatten().tolist() for row in matrix] == members
    out = merge_tokens(view.tokens, *plan.merge)[b, :keep].double()
    torch.testing.assert_close(out, tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rounds", [1, 24])
@pytest.mark.parametrize("n, keep", [(64, 1), (64, 2), (64, 16), (64, 63), (49, 9), (49, 25), (5, 2), (2, 1)])
def test_the_tokens_are_the_published_ones(n, keep, rounds):
    view = view_of(n, seed=n + keep)
    plan = build("tome", rounds=rounds).plan(view, [keep])
    assert plan.counts() == [keep]
    same_as_published(plan, 0, view, keep, rounds)


def test_samples_of_one_batch_may_have_any_budgets():
    keep, view = [3, 40, 1, 25, 14], view_of(40, batch=5)
    plan = build("tome").plan(view, keep)
    assert plan.counts() == keep
    for b, k in enumerate(keep):
        same_as_published(plan, b, view, k)
    assert torch.equal(merge_tokens(view.tokens, *plan.merge)[1], view.tokens[1])


@pytest.mark.parametrize("keep", [1, 10, 47])
def test_every_token_is_in_one_mean(keep):
    matrix = build("tome").plan(view_of(48), [keep]).merge.dense(48)[0]
    assert ((matrix != 0).sum(0) == 1).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(keep))


def test_neighbours_with_equal_keys_become_one():
    view = view_of(20)
    view.keys[:, :, 1::2] = 3 * view.keys[:, :, ::2]
    members = build("tome", rounds=1).plan(view, [10]).merge.dense(20)[0]
    assert [row.nonzero().flatten().tolist() for row in members] == [[i, i + 1] for i in range(0, 20, 2)]


def test_rounds_share_the_merges_and_no_round_takes_more_than_half():
    assert merges(576, 64, 24) == [22] * 23 + [6]
    assert merges(576, 1, 24)[-6:] == [24, 12, 6, 3, 1, 1]
    assert merges(9, 9, 24) == []


def test_the_operations_of_the_selection_are_counted():
    assert build("tome", rounds=1).flops(64, 1024, 40) == 2 * ((32 * 32 + 64) * 64 + 64 * 1024)
    assert build("tome").flops(64, 1024, 64) == 0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        build("tome", rounds=0)
