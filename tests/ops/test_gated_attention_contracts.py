"""gated_attention under torch: gradcheck, opcheck, compile, dtypes, empty and bad inputs."""

import pytest
import torch
from test_gated_attention import case, gradients

from budgetprune.ops import _native, gated_attention


@pytest.mark.parametrize("shape", [(2, 4, 2, 3, 5, 3), (1, 2, 1, 4, 3, 2)])
def test_gated_attention_passes_gradcheck(shape):
    q, k, v, _, mask = (x.double().requires_grad_() if x.is_floating_point() else x for x in case(shape))
    gate = (0.2 + 0.7 * torch.rand(mask.shape, dtype=torch.double)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: gated_attention(*x, mask=mask), (q, k, v, gate))


@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_gated_attention_takes_a_gate_of_any_float_dtype(gate_dtype):
    q, k, v, gate, _ = case((2, 2, 2, 6, 6, 4), torch.bfloat16)
    leaf = gate.to(gate_dtype).requires_grad_()
    out = gated_attention(q, k, v, leaf)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and leaf.grad.dtype == gate_dtype and leaf.grad.abs().sum() > 0


def test_gated_attention_needs_no_graph_without_grad():
    q, k, v, gate, _ = case((2, 2, 2, 6, 6, 4))
    assert gated_attention(q, k, v, gate).grad_fn is None
    with torch.no_grad():
        assert gated_attention(q, k, v, gate.requires_grad_()).grad_fn is None


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 3, 4), (2, 2, 1, 0, 3, 4), (2, 2, 1, 3, 0, 4), (2, 2, 1, 3, 3, 0)])
def test_gated_attention_takes_empty_dimensions(shape):
    q, k, v, gate, mask = case(shape)
    out, *grads = gradients(lambda *x: gated_attention(*x, mask=mask), (q, k, v, gate), torch.ones_like(q))
    assert out.shape == q.shape and (out == 0).all()
    assert all((x == 0).all() for x in grads)


def test_gated_attention_passes_opcheck():
    q, k, v, gate, mask = case((2, 4, 2, 5, 7, 8))
    for exists in (None, mask):
        torch.library.opcheck(torch.ops.budgetprune.gated_attention.default, (q, k, v, gate, exists, True, 0.5))
    out, lse = torch.ops.budgetprune.gated_attention(q, k, v, gate, mask, True, 0.5)
    torch.library.opcheck(torch.ops.budgetprune.gated_attention_backward.default,
                          (torch.randn_like(q), q, k, v, gate, mask, out, lse, True, 0.5))


def test_gated_attention_compiles_whole_and_once_for_all_lengths():
    def loss(q, k, v, gate, mask):
        return (gated_attention(q * 2, k, v, gate, mask=mask) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for index, length in enumerate((9, 14, 33)):
        q, k, v, gate, mask = case((2, 4, 2, length, length, 8), seed=index)
        inputs = [x.requires_grad_() for x in (q, k, v, gate)]
        with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
            got = torch.autograd.grad(compiled(*inputs, mask), inputs)
        for a, b in zip(got, torch.autograd.grad(loss(*inputs, mask), inputs)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gated_attention_compiles_by_inductor():
    q, k, v, gate, mask = case((2, 4, 2, 9, 9, 8))
    grad = torch.randn_like(q)
    compiled = torch.compile(gated_attention, fullgraph=True)
    got, want = (gradients(lambda *x, f=f: f(*x, mask=mask), (q, k, v, gate), grad)
                 for f in (compiled, gated_attention))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change, error, words", [
    ({"q": torch.zeros(2, 4, 5)}, ValueError, "q must be"),
    ({"q": torch.zeros(2, 3, 5, 8)}, ValueError, "Hkv=2"),
    ({"q": torch.zeros(2, 4, 5, 8, dtype=torch.int32)}, TypeError, "q must be"),
    ({"q": "q"}, TypeError, "q must be a Tensor"),
    ({"k": torch.zeros(2, 2, 7, 6)}, ValueError, "k must have shape"),
    ({"k": torch.zeros(2, 2, 7, 8).half()}, TypeError, "k must be"),
    ({"v": torch.zeros(2, 2, 6, 8)}, ValueError, "v must have shape"),
    ({"gate": torch.ones(2, 6)}, ValueError, "gate must have shape"),
    ({"gate": torch.ones(2, 7, dtype=torch.bool)}, TypeError, "gate must be"),
    ({"mask": torch.ones(2, 7)}, TypeError, "mask must be"),
    ({"mask": torch.ones(2, 6, dtype=torch.bool)}, ValueError, "mask must have shape"),
    ({"gate": torch.ones(2, 7, device="meta")}, ValueError, "gate must be on"),
])
def test_gated_attention_names_what_is_wrong(change, error, words):
    arguments = {"q": torch.zeros(2, 4, 5, 8), "k": torch.zeros(2, 2, 7, 8), "v": torch.zeros(2, 2, 7, 8),
                 "gate": torch.ones(2, 7), "mask": torch.ones(2, 7, dtype=torch.bool)} | change
    tensors = [arguments.pop(name) for name in ("q", "k", "v", "gate")]
    with pytest.raises(error, match=words):
        gated_attention(*tensors, **arguments)


@pytest.mark.skipif(_native.FACTS is None, reason="guards of the compiled op; the reference serves")
def test_gated_attention_op_guards_memory_when_called_directly():
    q, k, v, gate, mask = case((2, 4, 2, 5, 7, 8))
    op = torch.ops.budgetprune.gated_attention
    for bad in ((q, k[:, :1, :, :4], v, gate, mask), (q, k, v[:, :, :3], gate, mask), (q, k, v, gate[:, :3], mask),
                (q, k, v, gate.double(), mask), (q, k, v, gate, mask[:1]), (q, k.half(), v, gate, mask)):
        with pytest.raises(RuntimeError):
            op(*bad, True, 1.0)
