"""gather_tokens: hand answers, laws, references, torch contracts."""

import pytest
import torch

from budgetprune.ops import _native, gather_tokens, select_topk
from budgetprune.ops.gather_tokens import gather_tokens_backward_reference, gather_tokens_reference
from budgetprune.plan import TokenPlan

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


# Without the compiled op the reference serves, which checks less.
needs_kernels = pytest.mark.skipif(_native.FACTS is None, reason="guards of the compiled op; the reference serves")


def case(B, N, C, K, prefix=0, dtype=torch.float32, seed=0):
    """Ragged: row b keeps a count drawn from 0..K."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, prefix + N, C, generator=generator).mul(8).to(dtype)
    counts = torch.randint(0, K + 1, (B,), generator=generator, dtype=torch.int32)
    return x, select_topk(torch.rand(B, N, generator=generator), counts, max_keep=K)


def kept_of(*rows):
    return torch.tensor(rows, dtype=torch.int32)


# ------------------------------------------------------------------------------------------------ hand answers

X = torch.arange(10.0).view(2, 5, 1)  # rows 0..4 and 5..9, one channel


def test_gather_tokens_pads_with_zeros():
    out = gather_tokens(X, kept_of([1, 3], [2, -1]), prefix=1)
    assert out.tokens.flatten(1).tolist() == [[0, 2, 4], [5, 8, 0]]
    assert out.positions.tolist() == [[0, 2, 4], [0, 3, 0]]
    assert out.mask.tolist() == [[True, True, True], [True, True, False]]
    assert out.cu_seqlens.tolist() == [0, 3, 5] and out.max_length == 3


def test_gather_tokens_packs_without_padding():
    out = gather_tokens(X, kept_of([1, 3], [2, -1]), prefix=1, packed=True)
    assert out.tokens.flatten().tolist() == [0, 2, 4, 5, 8]
    assert out.positions.tolist() == [0, 2, 4, 0, 3]
    assert out.mask is None
    assert out.cu_seqlens.tolist() == [0, 3, 5] and out.max_length == 3


@pytest.mark.parametrize("packed", [False, True])
def test_gather_tokens_returns_each_gradient_to_its_row(packed):
    x = X.clone().requires_grad_()
    tokens = gather_tokens(x, kept_of([1, 3], [2, -1]), prefix=1, packed=packed).tokens
    weight = torch.tensor([1.0, 2, 3, 4, 5]) if packed else torch.tensor([[1.0, 2, 3], [4, 5, 99]])
    (tokens.squeeze(-1) * weight).sum().backward()
    assert x.grad.flatten().tolist() == [1, 0, 2, 0, 3, 4, 0, 0, 5, 0]


# -------------------------------------------------------------------------------------------------------- laws

def test_gather_tokens_that_keeps_all_is_the_identity():
    x = torch.randn(3, 8, 5)
    every = torch.arange(7, dtype=torch.int32).expand(3, -1)
    out = gather_tokens(x, every, prefix=1)
    assert torch.equal(out.tokens, x) and out.mask.all()
    assert torch.equal(out.positions, torch.arange(8, dtype=torch.int32).expand(3, -1))


def test_gather_tokens_of_nothing_keeps_the_prefix():
    x = torch.randn(2, 6, 4)
    for kept in (torch.empty(2, 0, dtype=torch.int32), torch.full((2, 3), -1, dtype=torch.int32)):
        out = gather_tokens(x, kept, prefix=2)
        assert torch.equal(out.tokens[:, :2], x[:, :2]) and (out.tokens[:, 2:] == 0).all()
        assert out.cu_seqlens.tolist() == [0, 2, 4]
        assert torch.equal(gather_tokens(x, kept, prefix=2, packed=True).tokens, x[:, :2].flatten(0, 1))


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_gather_tokens_packed_is_padded_without_its_padding(prefix):
    x, kept = case(5, 40, 7, 16, prefix)
    padded, packed = gather_tokens(x, kept, prefix=prefix), gather_tokens(x, kept, prefix=prefix, packed=True)
    assert torch.equal(packed.tokens, padded.tokens[padded.mask])
    assert torch.equal(packed.positions, padded.positions[padded.mask])
    assert torch.equal(packed.cu_seqlens, padded.cu_seqlens) and packed.max_length == padded.max_length
    assert torch.equal(padded.cu_seqlens.diff(), padded.mask.sum(1).int())
    for b, (start, end) in enumerate(packed.cu_seqlens.unfold(0, 2, 1)):
        assert torch.equal(packed.tokens[start:end], x[b, packed.positions[start:end].long()])


def test_gather_tokens_gradient_is_the_transpose_of_the_gather():
    """<gather(x), y> = <x, gather'(y)> for any y: no token lost, none counted twice."""
    x, kept = case(4, 30, 6, 12, 1, torch.float64)
    x.requires_grad_()
    for packed in (False, True):
        tokens = gather_tokens(x, kept, prefix=1, packed=packed).tokens
        y = torch.randn_like(tokens)
        grad, = torch.autograd.grad(tokens, x, y)
        torch.testing.assert_close((tokens * y).sum(), (x * grad).sum())
        assert (grad.abs().sum(-1) > 0).sum() == (kept >= 0).sum() + 4


@pytest.mark.parametrize("packed", [False, True])
def test_gather_tokens_reads_any_strides(packed):
    x, kept = case(3, 20, 8, 9, 1)
    expected = gather_tokens(x, kept, prefix=1, packed=packed).tokens
    wide = torch.randn(3, 25, 16)
    wide[:, 4:, :8] = x
    views = [x.transpose(0, 1).contiguous().transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2),
             wide[:, 4:, :8], x.flip(0).flip(0)]
    for view in views:
        assert torch.equal(gather_tokens(view, kept, prefix=1, packed=packed).tokens, expected)
    assert torch.equal(gather_tokens(x, kept.t().contiguous().t(), prefix=1, packed=packed).tokens, expected)
    one = x[:1].expand(3, -1, -1).requires_grad_()
    tokens = gather_tokens(one, kept, prefix=1, packed=packed).tokens
    grad, = torch.autograd.grad(tokens, one, torch.ones(1).expand(tokens.shape))
    assert grad.sum() == 8 * ((kept >= 0).sum() + 3)


# ------------------------------------------------------------------------------------------ references, dtypes

@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("B, N, C, K, prefix",
                         [(1, 1, 1, 1, 0), (3, 7, 5, 4, 1), (2, 576, 33, 192, 0), (4, 577, 64, 100, 1), (2, 9, 0, 3, 1),
                          (0, 5, 4, 2, 1), (2, 0, 4, 0, 0)])
def test_gather_tokens_equals_the_reference(B, N, C, K, prefix, packed):
    x, kept = case(B, N, C, K, prefix)
    total = B * prefix + int((kept >= 0).sum())
    got = torch.ops.budgetprune.gather_tokens(x, kept, None, prefix, packed, total)
    want = gather_tokens_reference(x, kept, None, prefix, packed, total)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want))
    grad = torch.randn_like(got[0])
    arguments = (grad, kept, got[3], prefix, prefix + N, packed)
    dx = torch.ops.budgetprune.gather_tokens_backward(*arguments)
    assert torch.equal(dx, gather_tokens_backward_reference(*arguments)) and dx.shape == x.shape


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool])
def test_gather_tokens_copies_every_dtype_exactly(dtype):
    x, kept = case(3, 17, 5, 6, 1, dtype)
    out = gather_tokens(x, kept, prefix=1)
    assert out.tokens.dtype == dtype
    assert torch.equal(out.tokens[out.mask], gather_tokens(x, kept, prefix=1, packed=True).tokens)
    assert torch.equal(out.tokens, gather_tokens_reference(x, kept, None, 1, False, 0)[0])


def test_gather_tokens_copies_nan_and_infinity():
    x = torch.tensor([[[torch.nan], [torch.inf], [-0.0]]])
    out = gather_tokens(x, kept_of([0, 1, 2])).tokens
    assert torch.equal(out.view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gather_tokens_gradient_is_exact_in_every_float(dtype):
    x, kept = case(3, 20, 8, 7, 1, dtype)
    tokens = gather_tokens(x.requires_grad_(), kept, prefix=1).tokens
    grad, = torch.autograd.grad(tokens, x, torch.full_like(tokens, 1.5))
    assert grad.dtype == dtype and grad.sum().item() == 1.5 * 8 * (3 + int((kept >= 0).sum()))


# --------------------------------------------------------------------------------------------- torch contracts

@pytest.mark.parametrize("packed", [False, True])
def test_gather_tokens_passes_gradcheck_twice(packed):
    x, kept = case(3, 6, 2, 4, 1, torch.float64)
    x.requires_grad_()

    def gather(x):
        return gather_tokens(x, kept, prefix=1, packed=packed).tokens

    assert torch.autograd.gradcheck(gather, x)
    assert torch.autograd.gradgradcheck(gather, x)


def test_gather_tokens_passes_opcheck():
    x, kept = case(3, 20, 8, 7, 1)
    for packed in (False, True):
        total = 3 + int((kept >= 0).sum())
        torch.library.opcheck(torch.ops.budgetprune.gather_tokens.default, (x, kept, None, 1, packed, total))
        tokens, _, _, cu_seqlens = torch.ops.budgetprune.gather_tokens(x, kept, None, 1, packed, total)
        torch.library.opcheck(torch.ops.budgetprune.gather_tokens_backward.default,
                              (tokens.clone(), kept, cu_seqlens, 1, 21, packed))


@pytest.mark.parametrize("packed", [False, True])
def test_gather_tokens_compiles_whole_and_once_for_all_lengths(packed):
    def loss(x, kept, total):
        out = gather_tokens(x * 2, kept, prefix=1, packed=packed, total=total)
        return (out.tokens ** 2).sum() * out.max_length

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for index, (N, K) in enumerate(((20, 7), (31, 12), (64, 16))):
        x, kept = case(3, N, 8, K, 1, seed=index)
        x.requires_grad_()
        total = 3 + int((kept >= 0).sum()) if packed else None
        with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
            got, = torch.autograd.grad(compiled(x, kept, total), x)
        torch.testing.assert_close(got, torch.autograd.grad(loss(x, kept, total), x)[0])


def test_gather_tokens_compiles_by_inductor():
    x, kept = case(3, 20, 8, 7, 1)
    compiled = torch.compile(lambda x, kept: gather_tokens(x, kept, prefix=1), fullgraph=True)
    for got, want in zip(compiled(x, kept), gather_tokens(x, kept, prefix=1)):
        assert got == want if isinstance(want, int) else torch.equal(got, want)


def test_gather_tokens_maps_over_a_leading_dimension():
    x, kept = (torch.stack(pair) for pair in zip(*(case(3, 12, 4, 5, 1, seed=s) for s in range(4))))
    mapped = torch.vmap(lambda x, kept: gather_tokens(x, kept, prefix=1)[:4])(x, kept)
    shared = torch.vmap(lambda x: gather_tokens(x, kept[0], prefix=1).tokens, in_dims=1, out_dims=1)(x.transpose(0, 1))
    for i in range(4):
        assert all(torch.equal(a[i], b) for a, b in zip(mapped, gather_tokens(x[i], kept[i], prefix=1)))
        assert torch.equal(shared[:, i], gather_tokens(x[i], kept[0], prefix=1).tokens)
    per_sample = torch.func.vmap(torch.func.grad(lambda x, kept: (gather_tokens(x, kept, prefix=1).tokens ** 2).sum()))
    leaf = x.clone().requires_grad_()
    sum((gather_tokens(leaf[i], kept[i], prefix=1).tokens ** 2).sum() for i in range(4)).backward()
    torch.testing.assert_close(per_sample(x, kept), leaf.grad)


def test_gather_tokens_needs_no_graph_without_grad():
    x, kept = case(2, 9, 4, 3)
    assert gather_tokens(x, kept).tokens.grad_fn is None
    with torch.no_grad():
        assert gather_tokens(x.requires_grad_(), kept).tokens.grad_fn is None


# --------------------------------------------------------------------------------------------------- gates

def test_a_gate_multiplies_kept_tokens_and_leaves_the_prefix():
    gate = torch.tensor([[1.0, 0.5, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    out = gather_tokens(X, kept_of([1, 2], [2, -1]), gate=gate, prefix=1)
    assert out.tokens.flatten(1).tolist() == [[0, 1, 6], [5, 8, 0]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("B, N, C, K, prefix", [(3, 20, 8, 9, 1), (2, 70, 33, 40, 0), (1, 5, 520, 5, 2),
                                                (2, 40, 1, 1, 0)])
def test_a_gate_gives_the_gradient_of_a_product_before_the_gather(B, N, C, K, prefix, dtype, packed):
    x, kept = case(B, N, C, K, prefix, dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    gate = torch.rand(B, N).to(kind)
    leaves = x.clone().requires_grad_(), gate.clone().requires_grad_()
    out = gather_tokens(leaves[0], kept, gate=leaves[1], prefix=prefix, packed=packed).tokens
    upstream = torch.randn(out.shape).to(dtype)
    grads = torch.autograd.grad(out, leaves, upstream)
    exact = x.double().requires_grad_(), gate.double().requires_grad_()
    full = torch.nn.functional.pad(exact[1], (prefix, 0), value=1.0)
    expected = gather_tokens(exact[0] * full[..., None], kept, prefix=prefix, packed=packed).tokens
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected.detach(), rtol=2 * eps, atol=1e-7)
    torch.testing.assert_close(grads[0].double(), wanted[0], rtol=2 * eps, atol=1e-7)
    torch.testing.assert_close(grads[1].double(), wanted[1], rtol=1e-5, atol=1e-5 * C)
    assert not grads[1][~TokenPlan(kept).mask(N)].any()  # a dropped token's gate: exactly 0


def test_a_gate_reads_any_strides():
    x, kept = case(3, 20, 8, 9, 1)
    gate = torch.rand(20, 3).t()
    expected = gather_tokens(x, kept, gate=gate.contiguous(), prefix=1).tokens
    wide = torch.randn(3, 25, 16)
    wide[:, 4:, :8] = x
    assert torch.equal(gather_tokens(wide[:, 4:, :8], kept, gate=gate, prefix=1).tokens, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_a_gate_passes_gradcheck_opcheck_vmap_and_compilation(packed):
    x, kept = case(2, 9, 5, 4, 1, torch.float64)
    gate = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    torch.autograd.gradcheck(lambda x, g: gather_tokens(x, kept, gate=g, prefix=1, packed=packed).tokens, (x, gate))
    total = int((kept >= 0).sum()) + 2
    torch.library.opcheck(torch.ops.budgetprune.gather_tokens.default,
                          (x.detach(), kept, gate.detach(), 1, packed, total if packed else 0))
    out = gather_tokens(x.detach(), kept, gate=gate.detach(), prefix=1, packed=packed)
    torch.library.opcheck(torch.ops.budgetprune.gather_tokens_gated_backward.default, (
        out.tokens, x.detach(), kept, gate.detach(), out.cu_seqlens, 1, packed))
    compiled = torch.compile(lambda x, g: gather_tokens(x * 2, kept, gate=g, prefix=1, packed=packed,
                                                        total=total if packed else None).tokens.sum(),
                             backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(x, gate), (x, gate))
    want = torch.autograd.grad(gather_tokens(x * 2, kept, gate=gate, prefix=1, packed=packed).tokens.sum(), (x, gate))
    torch.testing.assert_close(got, want)
    if not packed:
        many = torch.stack([x.detach(), -x.detach()])
        mapped = torch.vmap(lambda x: gather_tokens(x, kept, gate=gate.detach(), prefix=1).tokens)(many)
        assert torch.equal(mapped[1], gather_tokens(many[1], kept, gate=gate.detach(), prefix=1).tokens)


# --------------------------------------------------------------------------------------------------- bad input

@needs_kernels
@pytest.mark.cpu_values
@pytest.mark.parametrize("row, words", [([0, 5], "must be in"), ([-2, 1], "must be in"), ([1, 1], "ascend"),
                                        ([3, 2], "ascend"), ([-1, 2], "only at the end")])
def test_gather_tokens_refuses_positions_that_are_no_plan(row, words):
    with pytest.raises(RuntimeError, match=words):
        gather_tokens(torch.zeros(2, 5, 3), kept_of([0, 1], row))
    with pytest.raises(RuntimeError, match=words):
        torch.ops.budgetprune.gather_tokens_backward(torch.zeros(2, 2, 3), kept_of([0, 1], row),
                                                     torch.arange(0, 5, 2).int(), 0, 5, False)


@pytest.mark.parametrize("arguments, change, error, words", [
    (("x", kept_of([0])), {}, TypeError, "x must be a Tensor"),
    ((torch.zeros(2, 5), kept_of([0], [1])), {}, ValueError, "x must be"),
    ((X, [[0], [1]]), {}, TypeError, "kept must be a Tensor"),
    ((X, torch.zeros(2, dtype=torch.int32)), {}, ValueError, "kept must be"),
    ((X, kept_of([0])), {}, ValueError, "kept must have shape"),
    ((X, kept_of([0], [1]).long()), {}, TypeError, "kept must be"),
    ((X, kept_of([0], [1]).to("meta")), {}, ValueError, "kept must be on"),
    ((X, kept_of([0], [1])), {"prefix": 6}, ValueError, "prefix must be"),
    ((X, kept_of([0], [1])), {"prefix": -1}, ValueError, "prefix must be"),
    ((X, kept_of([0], [1])), {"total": 2}, ValueError, "total must be None"),
    pytest.param((X, kept_of([0], [-1])), {"packed": True, "total": 2}, RuntimeError,
                 "total must be the number of tokens, 1", marks=pytest.mark.cpu_values),
    ((X, kept_of([0], [1])), {"gate": torch.ones(2, 4)}, ValueError, "gate must have shape"),
    ((X, kept_of([0], [1])), {"gate": torch.ones(2, 5).int()}, TypeError, "gate must be"),
    ((X.int(), kept_of([0], [1])), {"gate": torch.ones(2, 5)}, TypeError, "x must be float32"),
    ((X, kept_of([0], [1])), {"packed": True, "total": -2}, RuntimeError, "total must be"),
])
def test_gather_tokens_names_what_is_wrong(arguments, change, error, words):
    with pytest.raises(error, match=words):
        gather_tokens(*arguments, **change)


@needs_kernels
@pytest.mark.cpu_values
def test_gather_tokens_op_guards_memory_when_called_directly():
    backward = torch.ops.budgetprune.gather_tokens_backward
    kept, starts = kept_of([0, 1], [2, -1]), torch.tensor([0, 2, 3], dtype=torch.int32)
    for bad in ((torch.zeros(2, 3, 1), kept, starts, 0, 5, False), (torch.zeros(4, 1), kept, starts, 0, 5, True),
                (torch.zeros(3, 1), kept, starts + 1, 0, 5, True),
                (torch.zeros(2, 2, 1), kept, starts[:2], 0, 5, False),
                (torch.zeros(2, 2, 1), kept.long(), starts, 0, 5, False)):
        with pytest.raises(RuntimeError):
            backward(*bad)
