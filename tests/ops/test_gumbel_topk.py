"""gumbel_topk: known noise, laws of the choice, gradients against float64 mathematics, bad input, torch contracts."""

import math

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from budgetprune.ops import gumbel_topk
from budgetprune.ops._noise_reference import log_reference, log_uniform_reference, noise_reference, philox_reference
from budgetprune.ops.gumbel_topk import (
    ESTIMATORS,
    NOISES,
    _backward_op,
    _op,
    gumbel_topk_backward_reference,
    gumbel_topk_reference,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = math.nan, math.inf
KEY = torch.tensor([123456789012345678, -987654321])


def logits_of(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def noisy(logits, key, noise, tau=1.0):
    return logits.float() / tau + noise_reference(key, *logits.shape, noise, logits.device)


@pytest.mark.parametrize("seed, counter, words", [
    (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),  # Random123's published answer for Philox4x32-10
    (1, 0, None),
    (-1, -1, None),
    (2**62 + 12345, 2**32 - 1, None),
    (-(2**63), 2**63 - 1, None),
])
def test_philox_gives_the_published_and_the_python_integer_answer(seed, counter, words):
    c = [counter % 2**32, (counter >> 32) % 2**32, 0, 0]
    k = [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k[0], right % 2**32, (left >> 32) ^ c[3] ^ k[1], left % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    if words is not None:
        assert c == [int(word, 16) for word in words.split()]
    assert [int(w) for w in philox_reference(torch.tensor(seed), torch.tensor(counter))] == c


def test_log_is_right_to_two_units_in_the_last_place():
    edges = torch.cat([torch.arange(4096), 2**23 + torch.arange(-4096, 4096), 2**24 - 1 - torch.arange(4096)])
    k = torch.cat([edges, torch.randint(2**24, (200_000,), generator=torch.Generator().manual_seed(0))])
    u, rest = (k.double() + 0.5) * 2.0**-24, ((0xFFFFFF - k).double() + 0.5) * 2.0**-24
    exact = torch.where(u < 0.5, u.log(), torch.log1p(-rest))
    ours = log_uniform_reference(k)
    unit = torch.from_numpy(np.spacing(np.abs(exact.float().numpy()))).double()
    assert ((ours - exact).abs() / unit).max() < 1.5
    x = torch.cat([-ours, torch.logspace(-30, 30, 100_000)])
    unit = torch.from_numpy(np.spacing(np.abs(x.double().log().float().numpy()))).double()
    assert ((log_reference(x) - x.double().log()).abs() / unit).max() < 1.5


def test_the_rarest_uniforms_give_finite_noise():
    extremes = log_uniform_reference(torch.tensor([0, 2**24 - 1]))
    assert extremes.tolist() == pytest.approx([-25 * math.log(2), -(2.0**-25)], rel=1e-6)
    largest = 25 * math.log(2)
    assert (-log_reference(-extremes)).tolist() == pytest.approx([-math.log(largest), largest], rel=1e-6)


@pytest.mark.parametrize("noise, mean, variance", [
    ("gumbel", 0.5772156649, math.pi**2 / 6), ("logistic", 0.0, math.pi**2 / 3)])
def test_noise_has_the_moments_of_its_distribution(noise, mean, variance):
    drawn = noise_reference(KEY, 1, 400_000, noise, "cpu").double()
    assert abs(drawn.mean() - mean) < 5 * math.sqrt(variance / 400_000)
    assert drawn.var() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("logits, keep, expected", [
    ([[3.0, 1.0, 2.0]], 1, [[1, 0, 0]]),
    ([[3.0, 1.0, 2.0]], 2, [[1, 0, 1]]),
    ([[3.0, 1.0, 2.0]], 0, [[0, 0, 0]]),
    ([[3.0, 1.0, 2.0]], 3, [[1, 1, 1]]),
    ([[5.0, 5.0, 5.0]], 2, [[1, 1, 0]]),
    ([[-INF, 0.0, -INF]], 2, [[1, 1, 0]]),
    ([[0.0, INF, 9.0]], 1, [[0, 1, 0]]),
    ([[INF, NAN, 9.0]], 1, [[0, 1, 0]]),
    ([[1e-40, -1e-40, 0.0]], 1, [[1, 0, 0]]),
    ([[-1e-40, 1e-40, 0.0]], 1, [[1, 0, 0]]),
    ([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], [1, 2], [[0, 0, 1], [1, 1, 0]]),
])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gumbel_topk_without_noise_gives_the_answers_worked_by_hand(logits, keep, expected, estimator):
    gate, _ = gumbel_topk(torch.tensor(logits), keep, key=KEY, noise="none", estimator=estimator)
    assert gate.tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, tokens", [(1, 1), (3, 7), (2, 576), (5, 577), (2, 2881)])
def test_gumbel_topk_keeps_the_reference_s_tokens_bit_for_bit(batch, tokens, dtype):
    logits, generator = 3 * logits_of(batch, tokens, dtype=dtype), torch.Generator().manual_seed(tokens)
    for estimator, noise, rows in [(e, n, r) for e in ESTIMATORS for n in NOISES for r in ((2,), (batch, 2))]:
        key = torch.randint(-(2**62), 2**62, rows, generator=generator)
        keep = torch.randint(0, tokens + 1, (batch,), generator=generator, dtype=torch.int32)
        args = (logits, keep, int(keep.max()), key, 0.7, estimator, noise, True)
        gate, kept, stats = _op(*args)
        expected_gate, expected_kept, expected_stats = gumbel_topk_reference(*args)
        assert torch.equal(kept, expected_kept) and torch.equal(gate, expected_gate) and gate.dtype == dtype
        torch.testing.assert_close(stats, expected_stats, rtol=1e-4, atol=2e-4)
        args = (logits_of(batch, tokens, seed=9, dtype=dtype), logits, key, expected_stats, 0.7, estimator, noise)
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        torch.testing.assert_close(_backward_op(*args), gumbel_topk_backward_reference(*args),
                                   rtol=tolerance, atol=tolerance)


def test_gumbel_topk_ranks_by_logits_over_tau_plus_the_noise_of_the_key():
    logits = logits_of(4, 333)
    for estimator, tau in (("race", 0.3), ("fermi", 0.3), ("softmax", 1.0)):
        _, kept = gumbel_topk(logits, 50, key=KEY, tau=0.3, estimator=estimator)
        expected = noisy(logits, KEY, "gumbel", tau).topk(50, dim=1).indices.sort(dim=1).values
        assert torch.equal(kept.long(), expected)


def test_gumbel_topk_keeps_exactly_k_ascending_and_padded():
    counts = [17 * row for row in range(12)]
    gate, kept = gumbel_topk(logits_of(12, 193), counts, key=KEY)
    assert set(gate.unique().tolist()) == {0.0, 1.0}
    assert gate.sum(dim=1).tolist() == counts
    for count, positions, bits in zip(counts, kept.tolist(), gate):
        assert positions == bits.nonzero()[:, 0].tolist() + [-1] * (187 - count)


def test_gumbel_topk_gives_the_same_answer_with_any_thread_count():
    leaf, before, answers = logits_of(64, 577).requires_grad_(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            gate, kept = gumbel_topk(leaf, 100, key=KEY)
            answers.append((gate.detach(), kept, *torch.autograd.grad((gate * leaf.detach()).sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other))


def test_gumbel_topk_rows_with_their_own_keys_do_not_depend_on_their_place():
    logits, keys = logits_of(5, 101), torch.arange(10).view(5, 2) ** 9
    order = torch.tensor([3, 1, 4, 0, 2])
    gate, _ = gumbel_topk(logits, 30, key=keys)
    assert torch.equal(gumbel_topk(logits[order], 30, key=keys[order])[0], gate[order])
    assert torch.equal(gumbel_topk(logits[:1], 30, key=keys[0])[0], gate[:1])  # one row: both kinds of key agree


def test_gumbel_topk_continues_one_stream_of_noise_across_calls():
    logits = logits_of(4, 96)
    whole, _ = gumbel_topk(logits, 20, key=torch.tensor([7, 1000]))
    later, _ = gumbel_topk(logits[1:], 20, key=torch.tensor([7, 1000 + 96 // 4]))
    assert torch.equal(whole[1:], later)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_gumbel_topk_takes_empty_input(shape):
    leaf = torch.zeros(shape, requires_grad=True)
    gate, kept = gumbel_topk(leaf, 0, key=KEY)
    gate.sum().backward()
    assert gate.shape == shape and kept.shape == (shape[0], 0) and leaf.grad.shape == shape


@pytest.mark.parametrize("change, error, words", [
    ({"logits": torch.zeros(3)}, ValueError, r"logits must be \[B, N\], got shape \[3\]"),
    ({"logits": torch.zeros(2, 3).int()}, TypeError, "logits must be float32.*got torch.int32"),
    ({"keep": 4}, ValueError, r"keep must be in \[0, N=3\], got 4"),
    ({"keep": [1, -1]}, ValueError, r"keep must be in \[0, N=3\], got -1"),
    ({"keep": torch.tensor([1, 1])}, TypeError, "keep must be torch.int32"),
    ({"key": 5}, TypeError, "key must be an int64 Tensor, got int"),
    ({"key": KEY.int()}, TypeError, "key must be an int64 Tensor, got torch.int32"),
    ({"key": KEY[:1]}, ValueError, r"key must be \[2\] or \[B, 2\], B=2, got shape \[1\]"),
    ({"key": KEY.expand(3, 2)}, ValueError, r"got shape \[3, 2\]"),
    ({"tau": 0.0}, ValueError, "tau must be above 0 and finite, got 0.0"),
    ({"tau": NAN}, ValueError, "tau must be above 0 and finite, got nan"),
    ({"estimator": "sigmoid"}, ValueError, "estimator must be one of .*race.*got 'sigmoid'"),
    ({"noise": "normal"}, ValueError, "noise must be one of .*gumbel.*got 'normal'"),
])
def test_gumbel_topk_names_the_bad_argument(change, error, words):
    args = {"logits": torch.zeros(2, 3), "keep": 1, "key": KEY, **change}
    with pytest.raises(error, match=words):
        gumbel_topk(args.pop("logits"), args.pop("keep"), **args)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gumbel_topk_passes_opcheck(estimator):
    logits, counts = logits_of(3, 17), torch.tensor([0, 5, 2], dtype=torch.int32)
    torch.library.opcheck(_op, (logits, counts, 5, KEY, 0.5, estimator, "gumbel", True))
    torch.library.opcheck(_op, (logits.double(), None, 5, KEY.expand(3, 2), 0.5, estimator, "none", False))
    stats = _op(logits, counts, 5, KEY, 0.5, estimator, "gumbel", True)[2]
    torch.library.opcheck(_backward_op, (logits, logits, KEY, stats, 0.5, estimator, "gumbel"))


def test_gumbel_topk_maps_over_batches_as_a_loop_would():
    logits = logits_of(4, 3, 50)
    one_by_one = torch.stack([gumbel_topk(x, 7, key=KEY)[0] for x in logits])
    assert torch.equal(torch.vmap(lambda x: gumbel_topk(x, 7, key=KEY)[0])(logits), one_by_one)
    keys = torch.arange(24).view(4, 3, 2)
    fused = torch.vmap(lambda x, key: gumbel_topk(x, 7, key=key))(logits, keys)
    looped = [gumbel_topk(x, 7, key=key) for x, key in zip(logits, keys)]
    assert all(torch.equal(a, torch.stack(b)) for a, b in zip(fused, zip(*looped)))
    slope = torch.func.grad(lambda x, key: (gumbel_topk(x, 7, key=key)[0] * x.detach()).sum())
    assert torch.equal(torch.vmap(slope)(logits, keys), torch.stack([slope(x, k) for x, k in zip(logits, keys)]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gumbel_topk_compiles_once_for_every_length(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)

    def step(logits, key):
        gate, kept = gumbel_topk(logits * 2, 5, key=key, tau=0.5)
        return (gate * logits.detach()).sum(), kept

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (64, 65, 577):
        leaf = logits_of(3, tokens).requires_grad_()
        loss, kept = compiled(leaf, KEY)
        expected_loss, expected_kept = step(leaf, KEY)
        assert torch.equal(kept, expected_kept)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf), torch.autograd.grad(expected_loss, leaf))
    assert counter.frame_count == 1


def test_gumbel_topk_compiles_no_more_for_another_count_or_length():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(logits, keep):
        gate, kept = gumbel_topk(logits * 2, keep, key=KEY)
        return (gate * logits.detach()).sum(), kept

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for at, (tokens, keep) in enumerate([(64, 5), (65, 6), (65, 9), (577, 9), (300, 300), (1000, 700)]):
        leaf = logits_of(3, tokens).requires_grad_()
        loss, kept = compiled(leaf, keep)
        expected_loss, expected_kept = step(leaf, keep)
        assert torch.equal(kept, expected_kept)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf), torch.autograd.grad(expected_loss, leaf))
        assert counter.frame_count <= min(at + 1, 2)  # once for the first sizes, once for all others


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("tokens", [577, 2881, 16384])
def test_gumbel_topk_keeps_the_same_tokens_on_the_gpu(tokens, estimator):
    for noise in NOISES:
        answers = []
        for device in ("cpu", "cuda"):
            leaf = logits_of(8, tokens).to(device).requires_grad_()
            gate, kept = gumbel_topk(leaf, tokens // 3, key=KEY.to(device), noise=noise, estimator=estimator)
            gate.backward(leaf.detach())
            answers.append([t.cpu() for t in (gate.detach(), kept, leaf.grad)])
        assert torch.equal(answers[0][0], answers[1][0]) and torch.equal(answers[0][1], answers[1][1])
        torch.testing.assert_close(answers[0][2], answers[1][2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["key", "keep"])
def test_gumbel_topk_refuses_tensors_on_another_device(name):
    arguments = {"keep": torch.ones(2, dtype=torch.int32), "key": torch.zeros(2, dtype=torch.int64)}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on cpu, got meta"):
        gumbel_topk(torch.randn(2, 5), arguments["keep"], key=arguments["key"], max_keep=2)
