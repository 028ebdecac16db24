"""select_topk: hand answers, laws, the reference on odd shapes, precision, bad input, torch contracts."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from budgetprune.ops import select_topk
from budgetprune.ops.select_topk import _op, select_topk_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("scores, keep, expected", [
    ([[3.0, 1.0, 2.0]], 1, [[0]]),
    ([[3.0, 1.0, 2.0]], 2, [[0, 2]]),
    ([[3.0, 1.0, 2.0]], 3, [[0, 1, 2]]),
    ([[3.0, 1.0, 2.0]], 0, [[]]),
    ([[5.0, 5.0, 5.0, 5.0]], 2, [[0, 1]]),
    ([[1.0, 5.0, 0.0, 5.0, 5.0]], 2, [[1, 3]]),
    ([[-0.0, 0.0, -1.0]], 1, [[0]]),
    ([[0.0, -0.0, -1.0]], 1, [[0]]),
    ([[1.0, NAN, 2.0]], 1, [[1]]),
    ([[INF, NAN, -INF]], 2, [[0, 1]]),
    ([[-INF, -INF, -1.0]], 2, [[0, 2]]),
    ([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], [1, 2], [[2, -1], [0, 1]]),
    ([[1.0, 2.0], [3.0, 4.0]], [0, 2], [[-1, -1], [0, 1]]),
])
def test_select_topk_gives_the_answers_worked_by_hand(scores, keep, expected):
    assert select_topk(torch.tensor(scores), keep).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 576, 577, 2880])
def test_select_topk_equals_the_reference_on_odd_shapes(tokens, dtype):
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.randn(5, tokens, generator=generator).to(dtype)
    scores[2] = scores[2].mul(2).round()  # many ties
    scores[3, ::3] = -0.0
    for keep in (0, 1, tokens // 3, tokens):
        assert torch.equal(select_topk(scores, keep), select_topk_reference(scores, None, keep))
    ragged = torch.randint(0, tokens + 1, (5,), generator=generator, dtype=torch.int32)
    longest = int(ragged.max())
    assert torch.equal(select_topk(scores, ragged), select_topk_reference(scores, ragged, longest))


def test_select_topk_orders_every_bit_pattern_of_float16():
    scores = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)[None]
    scores = scores[:, torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    for keep in (1, 1023, 2047, 40_000, 65_535):
        assert torch.equal(select_topk(scores, keep), select_topk_reference(scores, None, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_select_topk_tells_apart_neighbours_in_the_last_bit(dtype):
    one = torch.ones(1, dtype=dtype)
    scores = torch.stack([one, torch.nextafter(one, 2 * one), one, torch.nextafter(one, 0 * one)], dim=1)
    assert select_topk(scores, 1).tolist() == [[1]]
    assert select_topk(scores, 2).tolist() == [[0, 1]]
    assert select_topk(scores, 3).tolist() == [[0, 1, 2]]


def test_select_topk_keeps_exactly_k_ascending_and_padded():
    scores = torch.randn(16, 321, generator=torch.Generator().manual_seed(1))
    counts = [20 * row for row in range(16)]
    for row, kept in zip(counts, select_topk(scores, counts).tolist()):
        assert kept[row:] == [-1] * (300 - row)
        assert kept[:row] == sorted(set(kept[:row])) and len(kept[:row]) == row


def test_select_topk_keeps_nothing_worse_than_what_it_drops():
    scores = torch.randn(8, 577, generator=torch.Generator().manual_seed(2))
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, select_topk(scores, 100).long(), True)
    assert kept.sum(dim=1).tolist() == [100] * 8
    assert (scores.masked_fill(~kept, INF).amin(1) >= scores.masked_fill(kept, -INF).amax(1)).all()


def test_select_topk_follows_a_permutation_of_the_tokens():
    generator = torch.Generator().manual_seed(3)
    scores, order = torch.randn(4, 200, generator=generator), torch.randperm(200, generator=generator)
    kept = select_topk(scores, 50).long()
    assert torch.equal(order[select_topk(scores[:, order], 50).long()].sort(dim=1).values, kept)


def test_select_topk_reads_any_strides():
    scores = torch.randn(77, 6, generator=torch.Generator().manual_seed(4)).t()
    assert torch.equal(select_topk(scores, 9), select_topk(scores.contiguous(), 9))
    assert torch.equal(select_topk(scores[:, ::2], 9), select_topk(scores[:, ::2].contiguous(), 9))


def test_select_topk_gives_the_same_answer_with_any_thread_count():
    scores = torch.randn(64, 999, generator=torch.Generator().manual_seed(5))
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append(select_topk(scores, 333))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_select_topk_takes_empty_input(shape):
    assert select_topk(torch.zeros(shape), 0).shape == (shape[0], 0)


@pytest.mark.parametrize("scores, keep, options, error, words", [
    (torch.zeros(3), 1, {}, ValueError, r"scores must be \[B, N\], got shape \[3\]"),
    (torch.zeros(2, 3, dtype=torch.int64), 1, {}, TypeError, "scores must be float32.*got torch.int64"),
    ([[1.0]], 1, {}, TypeError, "scores must be a Tensor, got list"),
    (torch.zeros(2, 3), 4, {}, ValueError, r"keep must be in \[0, N=3\], got 4"),
    (torch.zeros(2, 3), -1, {}, ValueError, r"keep must be in \[0, N=3\], got -1"),
    (torch.zeros(2, 3), True, {}, TypeError, "keep must be an int"),
    (torch.zeros(2, 3), 0.5, {}, TypeError, "keep must be an int.*got float"),
    (torch.zeros(2, 3), [1], {}, ValueError, "one count per row, B=2, got 1"),
    (torch.zeros(2, 3), [1, 5], {}, ValueError, r"keep must be in \[0, N=3\], got 5"),
    (torch.zeros(2, 3), torch.tensor([1, 2]), {}, TypeError, "keep must be torch.int32, got torch.int64"),
    (torch.zeros(2, 3), [1, 2], {"max_keep": 1}, ValueError, "max_keep must be at least the largest keep, 2, got 1"),
    (torch.zeros(2, 3), [1, 2], {"max_keep": 4}, ValueError, r"max_keep must be in \[0, N=3\], got 4"),
])
def test_select_topk_names_the_bad_argument(scores, keep, options, error, words):
    with pytest.raises(error, match=words):
        select_topk(scores, keep, **options)


@pytest.mark.cpu_values
def test_select_topk_refuses_a_count_above_max_keep_inside_a_tensor():
    with pytest.raises((RuntimeError, IndexError)):
        _op(torch.zeros(2, 3), torch.tensor([1, 3], dtype=torch.int32), 2)


def test_select_topk_passes_opcheck():
    scores = torch.randn(3, 17)
    torch.library.opcheck(_op, (scores, None, 5))
    torch.library.opcheck(_op, (scores.double(), torch.tensor([0, 5, 2], dtype=torch.int32), 5))


def test_select_topk_maps_over_a_batch_of_batches():
    scores = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(6))
    one_by_one = torch.stack([select_topk(s, 7) for s in scores])
    assert torch.equal(torch.vmap(lambda s: select_topk(s, 7))(scores), one_by_one)
    assert torch.equal(torch.vmap(lambda s: select_topk(s, 7), in_dims=2)(scores.movedim(0, 2)), one_by_one)
    counts = torch.tensor([7, 0, 3], dtype=torch.int32)
    ragged = torch.vmap(lambda s: select_topk(s, counts, max_keep=7))(scores)
    assert torch.equal(ragged, torch.stack([select_topk(s, counts) for s in scores]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_select_topk_compiles_once_for_every_length(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda s: select_topk(s * 2, 5) + 1, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (64, 65, 577):
        scores = torch.randn(3, tokens)
        assert torch.equal(compiled(scores), select_topk(scores * 2, 5) + 1)
    assert counter.frame_count == 1


def test_select_topk_compiles_no_more_for_another_count_or_length():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda scores, keep: select_topk(scores * 2, keep), backend=counter, fullgraph=True)
    for at, (tokens, keep) in enumerate([(64, 5), (65, 6), (65, 9), (577, 9), (300, 300), (1000, 700)]):
        scores = torch.randn(3, tokens)
        assert torch.equal(compiled(scores, keep), select_topk(scores * 2, keep))
        assert counter.frame_count <= min(at + 1, 2)  # once for the first sizes, once for all others


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_select_topk_answers_alike_on_the_gpu(dtype):
    scores = torch.randn(9, 2881).to(dtype)
    counts = torch.randint(0, 2881, (9,), dtype=torch.int32)
    assert torch.equal(select_topk(scores.cuda(), counts.cuda()).cpu(), select_topk(scores, counts))


def test_select_topk_refuses_counts_on_another_device():
    with pytest.raises(ValueError, match="keep must be on cpu, got meta"):
        select_topk(torch.randn(2, 5), torch.ones(2, dtype=torch.int32, device="meta"), max_keep=2)
