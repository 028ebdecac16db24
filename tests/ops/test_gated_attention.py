"""gated_attention: hand answers, laws, references, precision, torch contracts."""

import math

import pytest
import torch
import torch.nn.functional as F

from budgetprune.ops import gated_attention
from budgetprune.ops.gated_attention import gated_attention_backward_reference, gated_attention_reference

# B, H, Hkv, Q, N, D: odd sizes, GQA, decode, more queries than keys, more than one tile of rows and of columns.
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 3, 7, 7, 5), (2, 4, 2, 5, 33, 24), (1, 6, 1, 1, 40, 16), (2, 2, 2, 9, 6, 8),
          (1, 2, 1, 65, 130, 40), (2, 4, 4, 84, 84, 24)]


def case(shape, dtype=torch.float32, seed=0, kept=0.4, exists=0.8):
    B, H, Hkv, Q, N, D = shape
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, h, n, D, generator=generator).to(dtype) for h, n in ((H, Q), (Hkv, N), (Hkv, N)))
    gate = (torch.rand(B, N, generator=generator) < kept).float()
    mask = torch.rand(B, N, generator=generator) < exists
    return q, k, v, gate, mask


def seen_keys(mask, Q, N, causal):
    seen = torch.ones(Q, N, dtype=torch.bool)
    seen = seen.tril(N - Q) if causal else seen
    return seen & mask[:, None, None, :]


def by_definition(q, k, v, gate, mask, causal=True, scale=None):
    """The formula as written, no maximum subtracted: autograd differentiates it at gates of 0 too."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    weight = torch.exp(q @ k.transpose(-1, -2) * scale) * gate[:, None, None, :]
    weight = weight * seen_keys(mask, q.shape[2], k.shape[2], causal)
    total = weight.sum(-1, keepdim=True)
    return torch.where(total > 0, weight / total.masked_fill(total == 0, 1), 0) @ v


def gradients(function, inputs, grad):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


# ------------------------------------------------------------------------------------------------ hand answers

def test_gated_attention_weighs_two_equal_keys_by_their_gates():
    q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, 2)
    v = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    out = gated_attention(q, k, v, torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(out, torch.tensor([[[[1.0, 6.0]]]]))


def test_gated_attention_gives_a_dropped_key_the_gradient_of_letting_it_in():
    """Equal scores, gates (1, 0): letting key 2 in moves out from v_1 to (v_1 + v_2) / 2, by hand."""
    q, k = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1)
    v = torch.tensor([[[[2.0], [7.0]]]])
    gate = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = gated_attention(q, k, v, gate)
    out.sum().backward()
    assert out.item() == 2.0
    torch.testing.assert_close(gate.grad, torch.tensor([[0.0, 2.5]]))


@pytest.mark.parametrize("causal, answer", [(True, [0.0, 1.0, 1.5]), (False, [2.0, 2.0, 2.0])])
def test_gated_attention_aligns_the_causal_mask_at_the_bottom_right(causal, answer):
    q, k = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 2, 1)
    v = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    gate = torch.ones(1, 2) if causal else torch.tensor([[0.0, 1.0]])
    assert gated_attention(q, k, v, gate, causal=causal).flatten().tolist() == answer


# -------------------------------------------------------------------------------------------------------- laws

@pytest.mark.parametrize("shape", SHAPES)
def test_gated_attention_equals_attention_over_the_kept_keys(shape):
    q, k, v, gate, mask = case(shape)
    out = gated_attention(q, k, v, gate, mask=mask)
    B, H, Hkv, Q, N, D = shape
    for b in range(B):
        kept = ((gate[b] > 0) & mask[b]).nonzero().flatten()
        seen = kept[None, :] <= torch.arange(Q)[:, None] + N - Q
        keys, values = (x[b:b + 1, :, kept].repeat_interleave(H // Hkv, 1) for x in (k, v))
        expected = F.scaled_dot_product_attention(q[b:b + 1], keys, values, attn_mask=seen) if len(kept) else 0
        expected = torch.where(seen.any(1)[None, None, :, None], expected, 0.0).expand(1, H, Q, D)
        torch.testing.assert_close(out[b:b + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_gated_attention_that_keeps_all_equals_sdpa(length):
    q, k, v, *_ = case((2, 4, 4, length, length, 24))
    out = gated_attention(q, k, v, torch.ones(2, length))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-5, rtol=1e-5)


def test_gated_attention_gives_left_padding_no_say():
    q, k, v, gate, _ = case((2, 4, 2, 12, 12, 8), kept=0.7)
    mask = torch.arange(12) >= torch.tensor([[0], [5]])
    out = gated_attention(q, k, v, gate, mask=mask)
    alone = gated_attention(q[1:, :, 5:], k[1:, :, 5:], v[1:, :, 5:], gate[1:, 5:])
    torch.testing.assert_close(out[1:, :, 5:], alone, atol=1e-6, rtol=1e-6)
    assert (out[1, :, :5] == 0).all()  # padded queries see no key


def test_gated_attention_decodes_one_query_like_the_last_row_of_all():
    q, k, v, gate, mask = case((2, 4, 2, 30, 30, 16))
    whole = gated_attention(q, k, v, gate, mask=mask)
    last = gated_attention(q[:, :, -1:], k, v, gate, mask=mask)
    torch.testing.assert_close(last, whole[:, :, -1:], atol=1e-6, rtol=1e-6)


def test_gated_attention_does_not_depend_on_the_scale_of_the_gates():
    q, k, v, _, mask = case((2, 4, 2, 9, 9, 8))
    gate = torch.rand(2, 9) + 0.1
    for factor in (1e-30, 1e-6, 1e6, 1e30):
        torch.testing.assert_close(gated_attention(q, k, v, gate * factor, mask=mask),
                                   gated_attention(q, k, v, gate, mask=mask), atol=2e-5, rtol=2e-5)


def test_gated_attention_is_blind_to_what_a_key_that_does_not_count_holds():
    q, k, v, gate, mask = case((2, 4, 2, 20, 20, 8))
    away = ~((gate > 0) & mask)[:, None, :, None]
    expected = gated_attention(q, k, v, gate, mask=mask)
    for junk in (math.nan, math.inf):
        out = gated_attention(q, k.masked_fill(away, junk), v.masked_fill(away, junk), gate, mask=mask)
        assert torch.equal(out, expected)
    missing = ~mask[:, None, :, None]
    junk = [q, k.masked_fill(missing, math.nan), v.masked_fill(missing, math.nan), gate]
    clean = [q, k, v, gate]
    grad = torch.randn_like(q)
    for got, want in zip(*(gradients(lambda *x: gated_attention(*x, mask=mask), x, grad) for x in (junk, clean))):
        assert torch.equal(got, want)


def test_gated_attention_shows_nan_in_keys_that_count():
    q, k, v, gate, _ = case((1, 1, 1, 4, 4, 4), kept=2.0)
    k[0, 0, 1] = math.nan
    out = gated_attention(q, k, v, gate)
    assert out[0, 0, 0].isfinite().all() and out[0, 0, 1:].isnan().all()
    gate[0, 2] = math.nan
    assert gated_attention(q, k.nan_to_num(), v, gate)[0, 0, 2:].isnan().all()


def test_gated_attention_rows_without_a_kept_key_have_no_output_and_no_gradient():
    q, k, v, gate, mask = case((2, 2, 1, 10, 10, 8))
    gate[0], mask[1] = 0, False
    for result in gradients(lambda *x: gated_attention(*x, mask=mask), (q, k, v, gate), torch.ones_like(q)):
        assert (result == 0).all()


def test_gated_attention_bounds_the_gradient_of_a_dropped_key_that_outweighs_all():
    q = torch.full((1, 1, 1, 1), 300.0)
    k, v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1), torch.tensor([0.0, 2.0]).view(1, 1, 2, 1)
    *_, dgate = gradients(lambda *x: gated_attention(*x, scale=1.0), (q, k, v, torch.tensor([[1.0, 0.0]])),
                          torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(dgate, torch.tensor([[0.0, 2.0]]), rtol=1e-5, atol=0)


def test_gated_attention_answers_alike_for_any_number_of_threads():
    q, k, v, gate, mask = case((2, 8, 2, 50, 50, 24))
    grad, before, answers = torch.randn_like(q), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append(gradients(lambda *x: gated_attention(*x, mask=mask), (q, k, v, gate), grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in answers[1:] for a, b in zip(answers[0], other))


def test_gated_attention_reads_strided_heads_and_leaves_inputs_alone():
    q, k, v, gate, mask = case((2, 4, 2, 11, 11, 8))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    interleaved = [torch.stack((x, -x), -1)[..., 0] for x in (q, k, v)]
    copies = [x.clone() for x in strided]
    expected = gated_attention(q, k, v, gate, mask=mask)
    assert torch.equal(gated_attention(*strided, gate, mask=mask), expected)
    assert torch.equal(gated_attention(*interleaved, gate, mask=mask), expected)
    assert all(torch.equal(x, y) for x, y in zip(strided, copies))


# -------------------------------------------------------------------------------------- references, precision

@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("gates", ["hard", "fractional"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_attention_and_its_gradients_equal_the_formula_in_float64(shape, gates, causal):
    q, k, v, gate, mask = (x.double() if x.is_floating_point() else x for x in case(shape))
    if gates == "fractional":
        gate = gate + 0.05 + 0.9 * torch.rand(gate.shape, dtype=torch.double)
    grad = torch.randn_like(q)
    got = gradients(lambda *x: gated_attention(*x, mask=mask, causal=causal), (q, k, v, gate), grad)
    want = gradients(lambda *x: by_definition(*x, mask, causal), (q, k, v, gate), grad)
    got[-1], want[-1] = (x * (gate > 0) for x in (got[-1], want[-1]))  # a dropped key has no derivative, see below
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_attention_gives_a_dropped_key_what_letting_it_in_would_change(shape, causal):
    """grad . (out with gate j = 1 - out), for every dropped key j by itself."""
    q, k, v, gate, mask = (x.double() if x.is_floating_point() else x for x in case(shape))
    gate[:, 0], mask[:, 0] = 1, True  # every row keeps a key: one that keeps none has no gradient
    grad = torch.randn_like(q)
    out, *_, got = gradients(lambda *x: gated_attention(*x, mask=mask, causal=causal), (q, k, v, gate), grad)
    for j in range(gate.shape[1]):
        let_in = gate.clone()
        let_in[:, j] = 1
        change = (grad * (gated_attention(q, k, v, let_in, mask=mask, causal=causal) - out))
        sees_a_kept_key = (out != 0).any(-1, keepdim=True)
        want = (change * sees_a_kept_key).sum((1, 2, 3))
        dropped = gate[:, j] == 0
        torch.testing.assert_close(got[dropped, j], want[dropped], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_attention_op_equals_the_plain_torch_reference(shape, dtype):
    q, k, v, gate, mask = case(shape, dtype)
    rest, grad = (mask, True, 0.3), torch.randn_like(q)
    out, lse = torch.ops.budgetprune.gated_attention(q, k, v, gate, *rest)
    out_reference, lse_reference = gated_attention_reference(q, k, v, gate, *rest)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(out, out_reference, **tolerance)
    torch.testing.assert_close(lse, lse_reference, rtol=1e-5, atol=1e-5)
    saved = (grad, q, k, v, gate, mask, out, lse, True, 0.3)
    for got, want in zip(torch.ops.budgetprune.gated_attention_backward(*saved),
                         gated_attention_backward_reference(*saved)):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=tolerance["rtol"], atol=10 * tolerance["atol"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gated_attention_is_no_less_precise_than_plain_torch(dtype):
    q, k, v, gate, mask = case((4, 4, 2, 48, 48, 32), dtype)
    mask[:], gate[:, 0] = True, 1  # plain torch divides 0 by 0 where a row sees no key
    grad = torch.randn(q.shape).to(dtype)

    def plain(q, k, v, gate):
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~seen_keys(mask, 48, 48, True), -1e4)
        weight = torch.exp(scores - scores.amax(-1, keepdim=True).detach()) * gate[:, None, None, :].to(dtype)
        return weight / weight.sum(-1, keepdim=True).clamp_min(1e-6) @ v

    exact = gradients(lambda *x: by_definition(*x, mask), [x.double() for x in (q, k, v, gate)], grad.double())
    ours = gradients(lambda *x: gated_attention(*x), (q, k, v, gate), grad)
    theirs = gradients(plain, (q, k, v, gate), grad)
    for found in (exact, ours, theirs):
        found[-1] = found[-1] * (gate > 0)  # of a dropped key plain torch has the derivative, we the secant
    for name, x, y, truth in zip(("out", "dq", "dk", "dv", "dgate"), ours, theirs, exact):
        error, allowed = (x - truth).norm() / truth.norm(), (y - truth).norm() / truth.norm()
        assert error <= allowed * 1.05 + 1e-6, name


def test_gated_attention_keeps_a_later_keys_nan_gate_out_of_earlier_rows():
    q, k, v, gate, _ = case((1, 2, 2, 8, 8, 8))
    gate[:] = 1
    gate[0, 7] = float("nan")
    out = gated_attention(q, k, v, gate)
    assert out[:, :, :7].isfinite().all() and out[:, :, 7].isnan().all()
