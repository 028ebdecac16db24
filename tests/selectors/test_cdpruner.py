"""CDPruner against the published rule, written out token by token."""

import pytest
import torch

from budgetprune.ops import cosine_similarity_matrix, greedy_select
from budgetprune.selectors import TokenView, build


def view_of(n, batch=1, words=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, text = (torch.randn(batch, size, 32, generator=generator) for size in (n, words))
    text_valid = torch.arange(words) < torch.tensor([words, 3, 1])[torch.arange(batch) % 3, None]
    return TokenView(tokens, text=text, text_valid=text_valid)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def kernel(x, words, sign):
    """L of one image, in double precision."""
    x, words = x.double(), words.double()
    r = torch.tensor([sign * sum(cosine(token, word) for word in words) / len(words) for token in x]).double()
    r = (r - r.min()) / (r.max() - r.min())
    return torch.stack([torch.stack([r[i] * cosine(a, b) * r[j] for j, b in enumerate(x)]) for i, a in enumerate(x)])


def published(x, words, keep, sign=1):
    """Always the token that leaves the largest determinant of L over the chosen."""
    matrix, chosen = kernel(x, words, sign), []
    for _ in range(keep):
        left = [n for n in range(len(x)) if n not in chosen]
        gains = [float(torch.linalg.det(matrix[[*chosen, n]][:, [*chosen, n]])) for n in left]
        chosen.append(left[gains.index(max(gains))])
    return sorted(chosen)


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("n, keep", [(30, 1), (30, 2), (30, 12), (20, 19), (20, 20)])
def test_the_tokens_are_the_published_ones(n, keep, negate):
    view = view_of(n, seed=n)
    kept = build("cdpruner", negate=negate).plan(view, [keep]).kept[0].tolist()
    assert kept == published(view.tokens[0], view.text[0], keep, sign=-1 if negate else 1)


def test_samples_of_one_batch_have_their_own_budget_scale_and_words():
    view, keep = view_of(24, batch=3), [5, 1, 11]
    view.tokens[1] *= 100
    plan = build("cdpruner").plan(view, keep)
    for b, k in enumerate(keep):
        words = view.text[b, view.text_valid[b]]
        assert plan.kept[b].tolist() == published(view.tokens[b], words, k) + [-1] * (11 - k)


def test_the_first_choice_is_the_token_nearest_to_the_text():
    view = view_of(24)
    view.tokens[0, 17] = 5 * torch.nn.functional.normalize(view.text[0], dim=-1).sum(0)
    assert build("cdpruner").plan(view, [1]).kept.tolist() == [[17]]


@pytest.mark.parametrize("absent", ["words", "directions"])
def test_without_a_difference_in_relevance_it_is_a_plain_dpp(absent):
    view = view_of(24)
    if absent == "words":
        view.text_valid[:] = False
    else:
        view.text.zero_()
    expected = greedy_select(cosine_similarity_matrix(view.tokens), 7, method="dpp")
    assert torch.equal(build("cdpruner").plan(view, [7]).kept, expected)


def test_what_stands_in_the_padding_of_the_text_does_not_matter():
    view = view_of(24, batch=3)
    plan = build("cdpruner").plan(view, [6] * 3)
    view.text[~view.text_valid] = torch.nan
    assert torch.equal(build("cdpruner").plan(view, [6] * 3).kept, plan.kept)


def test_text_of_another_width_is_refused():
    with pytest.raises(ValueError, match="text must be as wide as the projected tokens, C=32, got 8"):
        build("cdpruner").plan(TokenView(torch.ones(1, 4, 32), text=torch.ones(1, 2, 8)), [2])


def test_bad_options_are_refused():
    with pytest.raises(TypeError, match="negate must be True or False, got 'yes'"):
        build("cdpruner", negate="yes")


def test_the_operations_of_the_selection_are_counted():
    expected = 2 * (576 * 576 * 4096 + 576 * 4096 + 576 * (64 * 63 // 2))
    assert build("cdpruner").flops(576, 4096, 64) == expected
