"""DART against the paper's rule, written out token by token."""

import pytest
import torch

from budgetprune.selectors import TokenView, build


def view_of(n, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    tokens, keys = (torch.randn(batch, *shape, generator=generator) for shape in ((n, 12), (3, n, 8)))
    return TokenView(tokens, keys=keys)


def published(x, keys, keep, pivots=4):
    """Pivots by the keys' norm; each takes its share of the tokens least like it, of those that are left."""
    x = x.double()
    norms = [float(keys[:, n].double().abs().sum()) for n in range(len(x))]
    pivots = sorted(range(len(x)), key=lambda n: -norms[n])[: min(pivots, keep)]
    each, more = divmod(keep - len(pivots), len(pivots))
    kept = list(pivots)
    for turn, pivot in enumerate(pivots):
        left = [n for n in range(len(x)) if n not in kept]
        left.sort(key=lambda n: float(torch.cosine_similarity(x[pivot], x[n], dim=0)))
        kept += left[: each + (turn < more)]
    return sorted(kept)


@pytest.mark.parametrize("pivots", [1, 4, 8, 100])
@pytest.mark.parametrize("n, keep", [(60, 1), (60, 3), (60, 4), (60, 5), (60, 24), (60, 27), (60, 60), (7, 6)])
def test_the_tokens_are_those_of_the_rule(n, keep, pivots):
    view = view_of(n, seed=n + keep)
    kept = build("dart", pivots=pivots).plan(view, [keep]).kept[0].tolist()
    assert kept == published(view.tokens[0], view.keys[0], keep, pivots)


def test_samples_of_one_batch_may_have_any_budgets():
    keep, view = [3, 40, 1, 25, 14], view_of(40, batch=5)
    plan = build("dart").plan(view, keep)
    assert plan.counts() == keep
    for b, k in enumerate(keep):
        assert plan.kept[b].tolist() == published(view.tokens[b], view.keys[b], k) + [-1] * (40 - k)


def test_copies_of_the_pivot_go_first():
    """A pivot, 5 copies of it, 8 tokens in other directions: of 9 tokens none is a copy."""
    basis = torch.eye(9)
    x = torch.cat([basis[:1], 2 * basis[:1].repeat(5, 1), basis[1:]])[None]
    keys = torch.ones(1, 2, 14, 4)
    keys[:, :, 0] *= -5
    assert build("dart", pivots=1).plan(TokenView(x, keys=keys), [9]).kept[0].tolist() == [0, *range(6, 14)]


def test_the_operations_of_the_selection_are_counted():
    assert build("dart").flops(576, 1024, 64) == 2 * 4 * 576 * 1024
    assert build("dart").flops(576, 1024, 2) == 2 * 2 * 576 * 1024


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="pivots must be at least 1, got 0"):
        build("dart", pivots=0)
