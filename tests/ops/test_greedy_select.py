"""greedy_select: hand answers, laws, the published loops written out, bad input, torch contracts."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from budgetprune.ops import _native, cosine_similarity_matrix, greedy_select
from budgetprune.ops.greedy_select import METHODS, _op, greedy_select_reference

NAN, INF = math.nan, math.inf


def tokens(batch, n, channels=16, seed=0, dtype=torch.float32):
    return torch.randn(batch, n, channels, generator=torch.Generator().manual_seed(seed)).to(dtype)


def line(*places):
    """Similarities of points on a line: 1 - |distance|."""
    at = torch.tensor(places)
    return 1 - (at[:, None] - at).abs()[None]


# ------------------------------------------------------------------------------------------------ hand answers

@pytest.mark.parametrize("places, keep, expected", [
    # Nearest others are 1, 1, 3, 3, 3 away: 4 first (the lowest of three), then 10 (6 away), 0 (4 away), 7 (3), 1 (1).
    ((0.0, 1.0, 4.0, 7.0, 10.0), 1, [2]),
    ((0.0, 1.0, 4.0, 7.0, 10.0), 2, [2, 4]),
    ((0.0, 1.0, 4.0, 7.0, 10.0), 3, [0, 2, 4]),
    ((0.0, 1.0, 4.0, 7.0, 10.0), 4, [0, 2, 3, 4]),
    ((0.0, 1.0, 4.0, 7.0, 10.0), 5, [0, 1, 2, 3, 4]),
    ((0.0, 1.0, 4.0, 7.0, 10.0), 0, []),
    ((5.0, 5.0, 5.0), 2, [0, 1]),  # all alike: lower positions
    ((2.0,), 1, [0]),
])
def test_max_min_gives_the_answers_worked_by_hand(places, keep, expected):
    assert greedy_select(line(*places), keep).tolist() == [expected]


@pytest.mark.parametrize("relevance, keep, expected", [
    # d^2 of L = [[1, .8, 0], [.8, 1, 0], [0, 0, 1]] is 1, 1, 1; token 0 leaves .36 and 1: token 2, then 1.
    (None, 1, [0]),
    (None, 2, [0, 2]),
    (None, 3, [0, 1, 2]),
    # Relevance 1, 2, .5: d^2 = 1, 4, .25. Token 1 leaves 1 - .64 = .36 and .25: token 0.
    ([1.0, 2.0, 0.5], 1, [1]),
    ([1.0, 2.0, 0.5], 2, [0, 1]),
    # Relevance 0 is taken last.
    ([0.0, 1.0, 0.5], 2, [1, 2]),
    ([0.0, 1.0, 0.5], 3, [0, 1, 2]),
])
def test_dpp_gives_the_answers_worked_by_hand(relevance, keep, expected):
    similarity = torch.tensor([[[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]]])
    relevance = None if relevance is None else torch.tensor([relevance])
    assert greedy_select(similarity, keep, method="dpp", relevance=relevance).tolist() == [expected]


@pytest.mark.parametrize("method", METHODS)
def test_nan_ranks_first_and_still_exactly_k_are_kept(method):
    similarity = cosine_similarity_matrix(tokens(1, 9))
    similarity[0, 5, 5] = similarity[0, 4, 5] = NAN  # token 5 against token 4, and against itself for dpp
    assert greedy_select(similarity, 1, method=method).tolist() == [[5]]
    for keep in range(10):
        kept = greedy_select(similarity, keep, method=method)[0].tolist()
        assert len(set(kept)) == keep
    everything = torch.full((1, 6, 6), NAN)
    assert greedy_select(everything, 4, method=method).tolist() == [[0, 1, 2, 3]]


def test_infinite_similarity_is_nearest_and_infinitely_far_is_first():
    similarity = cosine_similarity_matrix(tokens(1, 8))
    similarity[0, :, 6] = similarity[0, 6, :] = -INF
    assert greedy_select(similarity, 1).tolist() == [[6]]
    similarity[0, :, 6] = similarity[0, 6, :] = INF
    for keep in range(1, 9):  # all are nearest to 6, which comes last; 6 itself is no neighbour of its own
        assert len(set(greedy_select(similarity, keep)[0].tolist())) == keep


# -------------------------------------------------------------------------------------------------------- laws

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 577])
def test_greedy_select_equals_the_reference_bit_for_bit(n, dtype, method):
    generator = torch.Generator().manual_seed(n)
    x = tokens(3, n, 8, n, dtype)
    x[1, n // 2:] = x[1, : n - n // 2].clone()  # duplicates
    similarity = cosine_similarity_matrix(x)
    similarity[2] = (similarity[2] * 4).round() / 4  # ties, and no longer positive semidefinite
    relevance = torch.rand(3, n, generator=generator).to(dtype)
    counts = torch.randint(0, min(n, 40) + 1, (3,), generator=generator, dtype=torch.int32)
    for r in (None, relevance) if method == "dpp" else (None,):
        for keep in (None, counts):
            longest = min(n, 40) if keep is None else int(counts.max())
            expected = greedy_select_reference(similarity, r, keep, longest, method)
            assert torch.equal(_op(similarity, r, keep, longest, method), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dpp_equals_the_reference_where_the_factor_is_large(dtype):
    """A GPU takes another way there, with several blocks to a sample."""
    x = tokens(2, 1100, 200, 8, dtype)
    x[1, 3:] = x[1, 3:6].repeat(366, 1)[:1097]  # rank 6: nearly all is a tie
    similarity, counts = cosine_similarity_matrix(x), torch.tensor([240, 17], dtype=torch.int32)
    relevance = torch.rand(2, 1100, generator=torch.Generator().manual_seed(9)).to(dtype)
    for r, keep in ((relevance, None), (None, counts)):
        expected = greedy_select_reference(similarity, r, keep, 240, "dpp")
        assert torch.equal(_op(similarity, r, keep, 240, "dpp"), expected)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_of_fewer_is_kept_of_more(method):
    similarity = cosine_similarity_matrix(tokens(2, 40))
    before = [set(), set()]
    for keep in range(1, 41):
        now = [set(row) for row in greedy_select(similarity, keep, method=method).tolist()]
        assert all(old < new and len(new) == keep for old, new in zip(before, now))
        before = now


def divprune_loop(similarity, keep):
    """The published rule for one sample: second smallest distance first, then the largest least distance."""
    distance, chosen = 1 - similarity, []
    for step in range(keep):
        if step == 0:
            score = distance.topk(2, dim=0, largest=False).values[1]
        else:
            score = distance[chosen].amin(0)
        chosen.append(int(score.argmax()))
    return sorted(chosen)


def greedy_determinant(similarity, relevance, keep):
    """The definition: always the token with which the determinant of L over the chosen is largest."""
    kernel = relevance[:, None] * similarity * relevance
    chosen = []
    for _ in range(keep):
        gains = torch.tensor([-INF if i in chosen else torch.linalg.det(kernel[chosen + [i]][:, chosen + [i]])
                              for i in range(len(kernel))])
        chosen.append(int(gains.argmax()))
    return sorted(chosen)


def test_max_min_is_the_published_loop():
    similarity = cosine_similarity_matrix(tokens(4, 120, 24))
    for keep in (2, 13, 64):
        expected = [divprune_loop(sample, keep) for sample in similarity]
        assert greedy_select(similarity, keep).tolist() == expected


def test_dpp_is_greedy_in_the_determinant():
    similarity = cosine_similarity_matrix(tokens(3, 20, 30, 1, torch.float64))
    relevance = torch.rand(3, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    for keep in (1, 4, 9):
        expected = [greedy_determinant(s, r, keep) for s, r in zip(similarity, relevance)]
        assert greedy_select(similarity, keep, method="dpp", relevance=relevance).tolist() == expected


def test_dpp_takes_the_whole_span_before_any_repetition():
    """Rank 6 of 30 tokens in 5 copies: six different ones first, whatever the noise of their products."""
    base = tokens(1, 6, 16, 3)
    similarity = cosine_similarity_matrix(base.repeat(1, 5, 1) * torch.linspace(0.1, 7, 30)[:, None])
    for keep in (6, 7, 20, 30):
        kept = greedy_select(similarity, keep, method="dpp")[0].tolist()
        assert len(set(kept)) == keep
        assert {k % 6 for k in kept} == set(range(6))
    # What is left ties at 0, so that the lowest positions come first.
    span = greedy_select(similarity, 6, method="dpp")[0].tolist()
    rest = [i for i in range(30) if i not in span][:3]
    assert greedy_select(similarity, 9, method="dpp")[0].tolist() == sorted(span + rest)


@pytest.mark.parametrize("similarity", [torch.zeros(1, 5, 5), torch.ones(1, 5, 5), -torch.ones(1, 5, 5)],
                         ids=["zeros", "ones", "minus ones"])
@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_that_tells_nothing_keeps_the_lowest_positions(method, similarity):
    assert greedy_select(similarity, 3, method=method).tolist() == [[0, 1, 2]]


def test_max_min_spreads_farther_than_any_token_left_out():
    """A 2-approximation law: no dropped token is farther from the kept than the kept are from one another."""
    similarity = cosine_similarity_matrix(tokens(3, 200, 12, 4))
    kept = greedy_select(similarity, 30).long()
    for sample, chosen in zip(1 - similarity, kept):
        between = sample[chosen][:, chosen].fill_diagonal_(INF).min()
        assert sample[chosen].amin(0).max() <= between + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_follows_a_permutation_of_the_tokens(method):
    x = tokens(2, 90, 120, 5, torch.float64)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(6))
    relevance = torch.rand(2, 90, generator=torch.Generator().manual_seed(7))  # alone, d^2 = 1 + rounding would decide
    first, second = ({"relevance": r} if method == "dpp" else {} for r in (relevance, relevance[:, order]))
    kept = greedy_select(cosine_similarity_matrix(x), 20, method=method, **first).long()
    other = greedy_select(cosine_similarity_matrix(x[:, order]), 20, method=method, **second).long()
    assert torch.equal(order[other].sort(dim=1).values, kept)


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_is_judged_alone_and_padded(method):
    similarity, counts = cosine_similarity_matrix(tokens(4, 50)), [7, 0, 50, 20]
    together = greedy_select(similarity, counts, method=method)
    assert together.shape == (4, 50)
    for b, count in enumerate(counts):
        assert together[b, count:].tolist() == [-1] * (50 - count)
        assert torch.equal(together[b:b + 1, :count], greedy_select(similarity[b:b + 1], count, method=method))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_similarities_are_read_as_float32(dtype):
    similarity = cosine_similarity_matrix(tokens(2, 60)).to(dtype)
    assert torch.equal(greedy_select(similarity, 9), greedy_select(similarity.float(), 9))
    relevance = torch.rand(2, 60).to(dtype)
    assert torch.equal(greedy_select(similarity, 9, method="dpp", relevance=relevance),
                       greedy_select(similarity.float(), 9, method="dpp", relevance=relevance.float()))


@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_reads_any_strides(method):
    wide = cosine_similarity_matrix(tokens(3, 60))
    view, whole = wide[:, 10:50, 10:50], wide[:, 10:50, 10:50].contiguous()
    assert torch.equal(greedy_select(view, 9, method=method), greedy_select(whole, 9, method=method))
    one = whole[:1].expand(3, -1, -1)
    assert torch.equal(greedy_select(one, 9, method=method), greedy_select(whole[:1], 9, method=method).expand(3, -1))


def test_greedy_select_gives_the_same_answer_with_any_thread_count():
    similarity, before = cosine_similarity_matrix(tokens(9, 70)), torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append(torch.cat([greedy_select(similarity, 20, method=method) for method in METHODS]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch, n", [(0, 5), (3, 0), (0, 0)])
def test_greedy_select_takes_empty_input(batch, n, method):
    assert greedy_select(torch.zeros(batch, n, n), 0, method=method).shape == (batch, 0)


def test_cosines_are_those_of_torch():
    x = tokens(2, 12, 7)
    x[0, 3] = 0
    expected = torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=-1)
    torch.testing.assert_close(cosine_similarity_matrix(x), expected)
    assert cosine_similarity_matrix(x.bfloat16()).dtype == torch.float32
    assert cosine_similarity_matrix(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"x must be \[B, N, C\]"):
        cosine_similarity_matrix(x[0])


# --------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("similarity, keep, options, error, words", [
    (torch.zeros(3, 3), 1, {}, ValueError, r"similarity must be \[B, N, N\], got shape \[3, 3\]"),
    (torch.zeros(1, 3, 4), 1, {}, ValueError, r"similarity must be \[B, N, N\], got shape \[1, 3, 4\]"),
    (torch.zeros(1, 3, 3, dtype=torch.int64), 1, {}, TypeError, "similarity must be float32.*got torch.int64"),
    ([[1.0]], 1, {}, TypeError, "similarity must be a Tensor, got list"),
    (torch.zeros(2, 3, 3), 4, {}, ValueError, r"keep must be in \[0, N=3\], got 4"),
    (torch.zeros(2, 3, 3), [1], {}, ValueError, "one count per row, B=2, got 1"),
    (torch.zeros(2, 3, 3), 1, {"method": "mmr"}, ValueError, "method must be one of .*'dpp'.*, got 'mmr'"),
    (torch.zeros(2, 3, 3), 1, {"relevance": torch.ones(2, 3)}, ValueError, 'relevance must be None unless method is'),
    (torch.zeros(2, 3, 3), 1, {"method": "dpp", "relevance": torch.ones(3)}, ValueError, r"relevance must be \[B, N\]"),
    (torch.zeros(2, 3, 3), 1, {"method": "dpp", "relevance": torch.ones(2, 4)}, ValueError,
     r"relevance must have shape \[2, 3\], got \[2, 4\]"),
    (torch.zeros(2, 3, 3), 1, {"method": "dpp", "relevance": torch.ones(2, 3, device="meta")}, ValueError,
     "relevance must be on cpu, got meta"),
])
def test_greedy_select_names_the_bad_argument(similarity, keep, options, error, words):
    with pytest.raises(error, match=words):
        greedy_select(similarity, keep, **options)


@pytest.mark.skipif(_native.FACTS is None, reason="a guard of the compiled op; the reference serves")
@pytest.mark.cpu_values
def test_greedy_select_refuses_a_count_above_max_keep_inside_a_tensor():
    with pytest.raises((RuntimeError, IndexError)):
        _op(torch.zeros(2, 3, 3), None, torch.tensor([1, 3], dtype=torch.int32), 2, "dpp")


# --------------------------------------------------------------------------------------------- torch contracts

@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_passes_opcheck(method):
    similarity = cosine_similarity_matrix(tokens(3, 17))
    torch.library.opcheck(_op, (similarity, None, None, 5, method))
    relevance = torch.rand(3, 17) if method == "dpp" else None
    torch.library.opcheck(_op, (similarity, relevance, torch.tensor([0, 5, 2], dtype=torch.int32), 5, method))


def test_greedy_select_has_no_gradient():
    x = tokens(2, 20).requires_grad_()
    assert not greedy_select(cosine_similarity_matrix(x), 5).requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_compiles_once_for_every_length(method):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: greedy_select(cosine_similarity_matrix(x), 5, method=method) + 1,
                             backend=counter, fullgraph=True, dynamic=True)
    for n in (20, 33, 64):
        x = tokens(2, n)
        assert torch.equal(compiled(x), greedy_select(cosine_similarity_matrix(x), 5, method=method) + 1)
    assert counter.frame_count == 1


def test_greedy_select_maps_over_a_batch_of_batches():
    similarity = torch.stack([cosine_similarity_matrix(tokens(3, 20, seed=s)) for s in range(4)])
    relevance = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([7, 0, 3], dtype=torch.int32)

    def select(s):
        return greedy_select(s, counts, method="dpp", relevance=relevance, max_keep=7)

    one_by_one = torch.stack([select(s) for s in similarity])
    assert torch.equal(torch.vmap(select)(similarity), one_by_one)
    assert torch.equal(torch.vmap(select, in_dims=3)(similarity.movedim(0, 3)), one_by_one)
