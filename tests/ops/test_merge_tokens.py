"""merge_tokens: hand answers, laws, references, precision, gradients, bad input, torch contracts."""

import pytest
import torch

from budgetprune.ops import _native, gather_tokens, merge_tokens
from budgetprune.ops.merge_tokens import (
    _dots,
    _op,
    _transpose,
    merge_dots_reference,
    merge_tokens_reference,
    merge_transpose_reference,
)

# Without the compiled op the reference serves, which checks less.
needs_kernels = pytest.mark.skipif(_native.FACTS is None, reason="of the compiled op; the reference serves")
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SHAPES = [(1, 1, 1, 1, 1), (3, 7, 5, 4, 9), (2, 33, 40, 6, 300), (4, 65, 24, 30, 70), (1, 300, 260, 3, 500),
          (2, 5, 0, 3, 4), (0, 5, 4, 2, 3), (2, 0, 4, 3, 5), (2, 5, 4, 0, 3), (2, 5, 4, 3, 0)]


def ints(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def case(B, N, C, M, E, dtype=torch.float32, seed=0):
    """Lists of random lengths; some entries before the first list or after the last, some of index -1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, N, C, generator=generator, dtype=torch.float64).to(dtype)
    offsets = torch.randint(0, E + 1, (B, M + 1), generator=generator, dtype=torch.int32).sort(1).values
    index = torch.randint(-1, N, (B, E), generator=generator, dtype=torch.int32)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return x, offsets, index, torch.randn(B, E, generator=generator, dtype=exact)


def dense(offsets, index, weight, tokens):
    """[B, M, N]: the lists as a matrix, one entry at a time."""
    matrix = torch.zeros(len(index), offsets.shape[1] - 1, tokens, dtype=torch.float64)
    for b in range(len(index)):
        for m in range(matrix.shape[1]):
            for e in range(int(offsets[b, m]), int(offsets[b, m + 1])):
                if index[b, e] >= 0:
                    matrix[b, m, index[b, e]] += weight[b, e].item()
    return matrix


# ------------------------------------------------------------------------------------------------ hand answers

X = torch.tensor([[[1.0, 10], [2, 20], [3, 30], [4, 40]]])


@pytest.mark.parametrize("offsets, index, weight, expected", [
    ([0, 1, 2], [0, 3], [1.0, 1], [[1.0, 10], [4, 40]]),
    ([0, 2, 3], [0, 1, 3], [0.5, 0.5, 2], [[1.5, 15], [8, 80]]),  # ToMe: the mean of a pair, and another alone
    ([0, 3], [1, 1, 1], [1.0, 1, 1], [[6.0, 60]]),  # the same token as often as wanted
    ([0, 0, 1], [2], [1.0], [[0.0, 0], [3, 30]]),  # an empty list
    ([0, 2], [-1, 2], [9.0, 1], [[3.0, 30]]),  # -1 is none
    ([1, 2], [0, 1, 2], [1.0, 1, 1], [[2.0, 20]]),  # entries of no list
    ([0], [0, 1], [1.0, 1], []),
])
def test_merge_tokens_gives_the_answers_worked_by_hand(offsets, index, weight, expected):
    assert merge_tokens(X, ints(offsets), ints(index), torch.tensor([weight])).tolist() == [expected]


def test_merge_tokens_returns_each_gradient_to_its_token_and_its_entry():
    x, weight = X.clone().requires_grad_(), torch.tensor([[0.5, 2.0, 3.0, 7.0]], requires_grad=True)
    out = merge_tokens(x, ints([0, 2, 3]), ints([0, 1, 1, 3]), weight)  # the last entry is in no list
    (out * torch.tensor([[[1.0, 1], [10, 0]]])).sum().backward()
    assert x.grad.tolist() == [[[0.5, 0.5], [2 + 30, 2], [0, 0], [0, 0]]]
    assert weight.grad.tolist() == [[11, 22, 20, 0]]


def test_transposed_lists_name_the_entries_of_each_token_in_order():
    offsets, index, entry = _transpose(ints([1, 3, 6]), ints([0, 2, 0, -1, 2, 2, 1]), 4)
    assert offsets.tolist() == [[0, 1, 1, 4, 4]]  # token 0 in entry 2; token 2 in entries 1, 4 and 5
    assert entry.tolist() == [[2, 1, 4, 5, 0, 0, 0]]
    assert index.tolist() == [[0, 0, 1, 1, -1, -1, -1]]


# -------------------------------------------------------------------------------------------------------- laws

@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merge_tokens_is_a_product_with_a_matrix(shape):
    x, offsets, index, weight = case(*shape, torch.float64)
    torch.testing.assert_close(merge_tokens(x, offsets, index, weight), dense(offsets, index, weight, shape[1]) @ x)


def test_lists_of_one_token_gather():
    x = torch.randn(3, 20, 9)
    kept = torch.randperm(20)[:7].sort().values.int().expand(3, -1)
    offsets = torch.arange(8, dtype=torch.int32).expand(3, -1)
    assert torch.equal(merge_tokens(x, offsets, kept, torch.ones(3, 7)), gather_tokens(x, kept).tokens)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transposing_twice_sorts_the_entries_of_every_list(shape):
    B, N, _, M, E = shape
    _, offsets, index, weight = case(*shape)
    to_offsets, to_index, to_entry = _transpose(offsets, index, N)
    back_offsets, back_index, back_entry = _transpose(to_offsets, to_index, M)
    again = weight.gather(1, to_entry.long()).gather(1, back_entry.long())
    assert torch.equal(dense(offsets, index, weight, N), dense(back_offsets, back_index, again, N)
                       if E else dense(offsets, index, weight, N))
    assert torch.equal(to_offsets[:, -1], (to_index >= 0).sum(1).int())


def test_merge_tokens_gradient_is_the_transpose_of_the_merge():
    """<merge(x), y> = <x, merge'(y)> for any y."""
    x, offsets, index, weight = case(3, 40, 6, 11, 90, torch.float64)
    out = merge_tokens(x.requires_grad_(), offsets, index, weight)
    y = torch.randn_like(out)
    grad, = torch.autograd.grad(out, x, y)
    torch.testing.assert_close((out * y).sum(), (x * grad).sum())


def test_merge_tokens_is_the_same_in_every_run_and_with_any_thread_count():
    x, offsets, index, weight = case(5, 90, 300, 12, 400)
    x.requires_grad_(), weight.requires_grad_()
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = merge_tokens(x, offsets, index, weight)
            answers.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in answers[1:] for a, b in zip(answers[0], other))


def test_a_sample_is_merged_alone():
    x, offsets, index, weight = case(4, 30, 12, 5, 60)
    together = merge_tokens(x, offsets, index, weight)
    for b in range(4):
        one = merge_tokens(*(t[b:b + 1] for t in (x, offsets, index, weight)))
        assert torch.equal(one, together[b:b + 1])


def test_merge_tokens_passes_over_what_no_list_asks_for():
    x, weight = X.clone(), torch.tensor([[1.0, torch.nan]])
    x[0, 3] = torch.nan
    assert merge_tokens(x, ints([0, 1]), ints([0, 1]), weight).tolist() == [[[1.0, 10]]]
    assert merge_tokens(x, ints([0, 2]), ints([0, -1]), weight).tolist() == [[[1.0, 10]]]
    assert merge_tokens(x, ints([0, 2]), ints([0, 3]), torch.zeros(1, 2)).isnan().all()  # 0 times NaN is NaN


def test_merge_tokens_reads_any_strides():
    x, offsets, index, weight = case(3, 20, 16, 7, 50)
    expected = merge_tokens(x, offsets, index, weight)
    wide = torch.randn(3, 25, 40)
    wide[:, 4:24, :16] = x
    views = [x.transpose(0, 1).contiguous().transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2),
             wide[:, 4:24, :16], x.flip(0).flip(0)]
    for view in views:
        assert torch.equal(merge_tokens(view, offsets, index, weight), expected)
    lists = [t.t().contiguous().t() for t in (offsets, index, weight)]
    assert torch.equal(merge_tokens(x, *lists), expected)
    one = x[:1].expand(3, -1, -1).clone()
    assert torch.equal(merge_tokens(x[:1].expand(3, -1, -1), offsets, index, weight),
                       merge_tokens(one, offsets, index, weight))


# --------------------------------------------------------------------------------------- references, precision

@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merge_tokens_and_its_parts_equal_the_references(shape, dtype):
    x, offsets, index, weight = case(*shape, dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    out, expected = _op(x, offsets, index, weight), merge_tokens_reference(x, offsets, index, weight)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=tolerance * 4, rtol=tolerance)
    dots, expected = _dots(out, x, offsets, index), merge_dots_reference(out, x, offsets, index)
    torch.testing.assert_close(dots, expected, atol=max(tolerance, 1e-12) * 4 + 1e-3 * (dtype != torch.float64),
                               rtol=min(tolerance, 1e-3))
    lists, expected = _transpose(offsets, index, shape[1]), merge_transpose_reference(offsets, index, shape[1])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(lists, expected))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merge_tokens_errs_no_more_than_a_product_of_matrices(dtype):
    """The published form of PruMerge, a sum in the dtype of the tokens, against the same in double."""
    x, offsets, index, weight = case(2, 576, 32, 20, 1200, dtype, 1)
    weight = weight / 20
    exact = dense(offsets, index, weight, 576) @ x.double()
    plain = (dense(offsets, index, weight, 576).to(dtype) @ x).double()
    ours = merge_tokens(x, offsets, index, weight).double()
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6
    assert (ours - exact).abs().mean() <= 1.5 * (plain - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_come_in_the_dtype_of_what_they_are_for(dtype):
    x, offsets, index, weight = case(2, 20, 8, 5, 30, dtype)
    x.requires_grad_()
    half = weight.to(dtype).requires_grad_()
    merge_tokens(x, offsets, index, half).sum().backward()
    assert x.grad.dtype == half.grad.dtype == dtype
    torch.testing.assert_close(merge_tokens(x, offsets, index, half), merge_tokens(x, offsets, index, half.float()))


# --------------------------------------------------------------------------------------------- torch contracts

def test_merge_tokens_passes_gradcheck_twice():
    x, offsets, index, weight = case(2, 6, 3, 4, 9, torch.float64)
    x.requires_grad_(), weight.requires_grad_()

    def merge(x, weight):
        return merge_tokens(x, offsets, index, weight)

    assert torch.autograd.gradcheck(merge, (x, weight))
    assert torch.autograd.gradgradcheck(merge, (x, weight))


def test_only_the_gradients_that_are_asked_for_are_made():
    x, offsets, index, weight = case(2, 6, 3, 4, 9)
    for wanted in (x, weight):
        wanted.requires_grad_()
        grad, = torch.autograd.grad(merge_tokens(x, offsets, index, weight).sum(), wanted)
        assert grad.shape == wanted.shape
        wanted.requires_grad_(False)
    assert merge_tokens(x, offsets, index, weight).grad_fn is None
    with torch.no_grad():
        assert merge_tokens(x.requires_grad_(), offsets, index, weight).grad_fn is None


def test_merge_tokens_passes_opcheck():
    x, offsets, index, weight = case(3, 20, 8, 7, 40)
    torch.library.opcheck(_op, (x, offsets, index, weight))
    torch.library.opcheck(_dots, (torch.randn(3, 7, 8), x, offsets, index))
    torch.library.opcheck(_transpose, (offsets, index, 20))


def test_merge_tokens_compiles_whole_and_once_for_all_lengths():
    def loss(x, offsets, index, weight):
        return (merge_tokens(x * 2, offsets, index, weight.exp()) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for at, (N, M, E) in enumerate(((20, 7, 40), (31, 12, 90), (64, 16, 51))):
        x, offsets, index, weight = case(3, N, 5, M, E, seed=at)
        x.requires_grad_(), weight.requires_grad_()
        with torch.compiler.set_stance("fail_on_recompile" if at else "default"):
            got = torch.autograd.grad(compiled(x, offsets, index, weight), (x, weight))
        for ours, expected in zip(got, torch.autograd.grad(loss(x, offsets, index, weight), (x, weight))):
            torch.testing.assert_close(ours, expected)


def test_merge_tokens_maps_over_a_leading_dimension():
    cases = [case(3, 12, 4, 5, 20, seed=s) for s in range(4)]
    x, offsets, index, weight = (torch.stack(parts) for parts in zip(*cases))
    mapped = torch.vmap(merge_tokens)(x, offsets, index, weight)
    assert torch.equal(mapped, torch.stack([merge_tokens(*one) for one in cases]))
    shared = torch.vmap(lambda x: merge_tokens(x, *cases[0][1:]), in_dims=1, out_dims=1)(x.transpose(0, 1))
    assert torch.equal(shared[:, 2], merge_tokens(x[2], *cases[0][1:]))

    def loss(x, weight, offsets, index):
        return (merge_tokens(x, offsets, index, weight) ** 2).sum()

    per_sample = torch.vmap(torch.func.grad(loss, (0, 1)))(x, weight, offsets, index)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    sum(loss(leaves[0][i], leaves[1][i], offsets[i], index[i]) for i in range(4)).backward()
    torch.testing.assert_close(per_sample, tuple(leaf.grad for leaf in leaves))


# --------------------------------------------------------------------------------------------------- bad input

@needs_kernels
@pytest.mark.cpu_values
@pytest.mark.parametrize("offsets, index, words", [
    ([0, 2, 1], [0, 0, 0], "offsets must ascend within .*, got 1 after 2 in row 0"),
    ([0, 2, 4], [0, 0, 0], r"offsets must ascend within \[0, E=3\], got 4"),
    ([-1, 2, 3], [0, 0, 0], "offsets must ascend within .*, got -1"),
    ([0, 2, 3], [0, 4, 0], r"index must be in \[0, N=4\) or -1, got 4 in row 0"),
    ([0, 2, 3], [0, -2, 0], r"index must be in \[0, N=4\) or -1, got -2"),
])
def test_merge_tokens_refuses_lists_that_are_none(offsets, index, words):
    with pytest.raises(RuntimeError, match=words):
        merge_tokens(X, ints(offsets), ints(index), torch.ones(1, 3))


GOOD = (X, ints([0, 1, 2]), ints([0, 1]), torch.ones(1, 2))


@pytest.mark.parametrize("at, bad, error, words", [
    (0, [[1.0]], TypeError, "x must be a Tensor, got list"),
    (0, torch.zeros(4, 2), ValueError, r"x must be \[B, N, C\], got shape \[4, 2\]"),
    (0, torch.zeros(1, 4, 2, dtype=torch.int32), TypeError, "x must be float32.*got torch.int32"),
    (1, [0, 1], TypeError, "offsets must be a Tensor, got list"),
    (1, torch.zeros(3, dtype=torch.int32), ValueError, r"offsets must be \[B, M \+ 1\], got shape \[3\]"),
    (1, torch.zeros(1, 0, dtype=torch.int32), ValueError, r"offsets must be \[B, M \+ 1\], got shape \[1, 0\]"),
    (1, torch.zeros(2, 3, dtype=torch.int32), ValueError, r"offsets must have shape \[1, 3\], got \[2, 3\]"),
    (1, torch.zeros(1, 3), TypeError, "offsets must be torch.int32, got torch.float32"),
    (2, torch.zeros(1, 2, dtype=torch.int64), TypeError, "index must be torch.int32, got torch.int64"),
    (2, torch.zeros(2, dtype=torch.int32), ValueError, r"index must be \[B, E\], got shape \[2\]"),
    (2, ints([0, 1]).to("meta"), ValueError, "index must be on cpu, got meta"),
    (3, torch.ones(1, 3), ValueError, r"weight must have shape \[1, 2\], got \[1, 3\]"),
    (3, torch.ones(1, 2, dtype=torch.int32), TypeError, "weight must be float32.*got torch.int32"),
    (3, torch.ones(1, 2, device="meta"), ValueError, "weight must be on cpu, got meta"),
])
def test_merge_tokens_names_the_bad_argument(at, bad, error, words):
    arguments = list(GOOD)
    arguments[at] = bad
    with pytest.raises(error, match=words):
        merge_tokens(*arguments)


@needs_kernels
def test_merge_tokens_op_guards_memory_when_called_directly():
    x, offsets, index, weight = GOOD
    for bad in ((x[0], offsets, index, weight), (x, offsets[0], index, weight), (x, offsets, index[:0], weight),
                (x, offsets, index, weight[:, :1]), (x, offsets, index, weight.double()),
                (x, offsets.long(), index, weight), (x.int(), offsets, index, weight)):
        with pytest.raises(RuntimeError):
            _op(*bad)
    for bad in ((torch.zeros(1, 3, 2), x, offsets, index), (torch.zeros(1, 2, 3), x, offsets, index),
                (torch.zeros(1, 2, 2).double(), x, offsets, index)):
        with pytest.raises(RuntimeError):
            _dots(*bad)
    with pytest.raises(RuntimeError):
        _transpose(offsets, index, -1)
