"""gumbel_topk's gradient: against float64, finite differences and plain torch, and where it must be zero."""

import math

import pytest
import torch

from budgetprune.ops import gumbel_topk
from budgetprune.ops._noise_reference import noise_reference
from budgetprune.ops.gumbel_topk import ESTIMATORS, _backward_op, _op

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = math.nan, math.inf
KEY = torch.tensor([123456789012345678, -987654321])


def logits_of(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("noise, estimator, error", [("gumbel", "race", 0.02), ("logistic", "fermi", 0.05)])
def test_inclusion_probabilities_are_how_often_a_token_is_kept(noise, estimator, error):
    logits = logits_of(1, 48)
    gate, _, stats = _op(logits.expand(20_000, 48).contiguous(), None, 16, KEY, 1.0, estimator, noise, True)
    x = logits[0].double() - stats[:1, 0] + stats[:1, 1]
    s = -torch.expm1(-x.exp()) if estimator == "race" else torch.sigmoid(x)
    assert s.sum() == pytest.approx(16, rel=1e-5)
    assert (gate.double().mean(dim=0) - s).abs().max() < error


def rows_that_are_hard_to_solve():
    spread = torch.linspace(-1e4, 1e4, 300)
    return torch.stack([spread, spread * 1e-3, torch.full((300,), 1e4), torch.full((300,), -1e4), torch.zeros(300),
                        torch.cat([torch.full((150,), 1e4), torch.full((150,), -1e4)]), logits_of(300).mul(1e-6),
                        torch.cat([torch.full((299,), -50.0), torch.zeros(1)])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator, noise", [("race", "gumbel"), ("fermi", "logistic"), ("race", "none")])
@pytest.mark.parametrize("keep", [1, 7, 150, 299])
def test_inclusion_probabilities_sum_to_k_whatever_the_logits(keep, estimator, noise, dtype):
    logits = rows_that_are_hard_to_solve().to(dtype)
    _, _, stats = _op(logits, None, keep, KEY, 1.0, estimator, noise, True)
    x = logits.double() - stats[:, :1].double() + stats[:, 1:].double()
    s = -torch.expm1(-x.exp()) if estimator == "race" else torch.sigmoid(x)
    assert ((s.sum(dim=1) - keep).abs() <= (1e-5 if dtype == torch.float32 else 1e-11) * keep).all()


def implicit(logits, counts, tau, estimator):
    """s(logits) of the definition, in float64: nu by bisection, re-solved for whatever logits come."""
    theta = logits / tau
    probability = (lambda x: -torch.expm1(-x.exp())) if estimator == "race" else torch.sigmoid
    low, high = theta.new_full((len(theta), 1), -80.0), theta.new_full((len(theta), 1), 80.0)
    for _ in range(200):
        nu = (low + high) / 2
        short = probability(theta + nu).sum(dim=1, keepdim=True) < counts[:, None]
        low, high = torch.where(short, nu, low), torch.where(short, high, nu)
    return probability(theta + nu)


@pytest.mark.parametrize("estimator", ["race", "fermi"])
@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_gradient_is_the_slope_of_the_inclusion_probabilities(estimator, tau):
    logits = logits_of(3, 9, dtype=torch.float64).requires_grad_()
    counts, g = torch.tensor([1, 4, 8], dtype=torch.int32), logits_of(3, 9, seed=5, dtype=torch.float64)
    gate, _ = gumbel_topk(logits, counts, key=KEY, tau=tau, estimator=estimator)
    (gate * g).sum().backward()
    step, slope = 1e-5, torch.zeros_like(g)
    for i in range(9):
        nudge = torch.zeros(9, dtype=torch.float64)
        nudge[i] = step
        difference = implicit(logits.detach() + nudge, counts, tau, estimator) - implicit(
            logits.detach() - nudge, counts, tau, estimator)
        slope[:, i] = (difference * g).sum(dim=1) / (2 * step)
    torch.testing.assert_close(logits.grad, slope, rtol=1e-6, atol=1e-8)


class Surrogate(torch.autograd.Function):
    """Forward: the smooth weights of the estimator; backward: the op's own. What gradcheck can differentiate."""

    @staticmethod
    def forward(ctx, logits, keep, tau, estimator):
        stats = _op(logits, None, keep, KEY, tau, estimator, "gumbel", True)[2]
        ctx.save_for_backward(logits, stats)
        ctx.options = tau, estimator
        if estimator == "softmax":
            return torch.softmax((logits + noise_reference(KEY, *logits.shape, "gumbel", "cpu")) / tau, dim=1)
        return implicit(logits, torch.full((len(logits),), keep), tau, estimator)

    @staticmethod
    def backward(ctx, grad):
        logits, stats = ctx.saved_tensors
        return _backward_op(grad, logits, KEY, stats, *ctx.options, "gumbel"), None, None, None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck_passes_on_the_smooth_surrogate(estimator):
    logits = logits_of(2, 7, seed=3, dtype=torch.float64).requires_grad_()
    for keep in (1, 3, 6):
        assert torch.autograd.gradcheck(Surrogate.apply, (logits, keep, 0.8, estimator), eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_gradient_is_the_straight_through_form(dtype):
    leaf, g = logits_of(3, 65, dtype=dtype).requires_grad_(), logits_of(3, 65, seed=2, dtype=dtype)
    gate, _ = gumbel_topk(leaf, 9, key=KEY, tau=0.5, estimator="softmax")
    ours, = torch.autograd.grad((gate * g).sum(), leaf)
    z = leaf + noise_reference(KEY, 3, 65, "gumbel", "cpu")
    soft = torch.softmax(z / 0.5, dim=1)
    hard = torch.zeros_like(soft).scatter(1, z.topk(9, dim=1).indices, 1)
    theirs, = torch.autograd.grad(((hard - soft.detach() + soft) * g).sum(), leaf)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("estimator", ["race", "fermi"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_no_worse_than_plain_torch_in_that_dtype(dtype, estimator):
    logits, g = logits_of(4, 577, dtype=dtype), logits_of(4, 577, seed=1, dtype=dtype)
    leaf = logits.clone().requires_grad_()
    gate, _ = gumbel_topk(leaf, 192, key=KEY, estimator=estimator)
    gate.backward(g)
    exact = logits.double().requires_grad_()
    gumbel_topk(exact, 192, key=KEY, estimator=estimator)[0].backward(g.double())
    assert (leaf.grad - exact.grad).abs().max() <= 2 * torch.finfo(dtype).eps * exact.grad.abs().max() + 1e-6 * (
        dtype != torch.float64)


def gradient(logits, keep, **options):
    leaf = torch.tensor(logits).requires_grad_()
    gate, _ = gumbel_topk(leaf, keep, key=KEY, **options)
    (gate * torch.tensor([1.0, -2.0, 5.0, 0.5])).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("estimator", ["race", "fermi"])
@pytest.mark.parametrize("logits, keep", [
    ([[1.0, 2.0, 3.0, 4.0]], 0), ([[1.0, 2.0, 3.0, 4.0]], 4), ([[1.0, -INF, 3.0, -INF]], 2),
    ([[1.0, -INF, 3.0, -INF]], 3), ([[INF, INF, 3.0, 1.0]], 2), ([[INF, INF, INF, 1.0]], 2), ([[-INF] * 4], 1)])
def test_gradient_is_zero_where_no_token_can_change_places(logits, keep, estimator):
    assert gradient(logits, keep, estimator=estimator).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_infinite_logits_have_no_gradient_and_leave_the_rest_alone(estimator):
    slope = gradient([[1.0, -INF, 3.0, 2.0]], 2, estimator=estimator)
    assert slope[0, 1] == 0 and slope.isfinite().all() and (slope[0, [0, 2, 3]] != 0).all()
    if estimator != "softmax":
        above = gradient([[1.0, INF, 3.0, 2.0]], 2, estimator=estimator)
        assert above[0, 1] == 0 and above.isfinite().all() and (above[0, [0, 2, 3]] != 0).all()


@pytest.mark.parametrize("keep", [0, 1, 2, 4])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_nan_logit_ranks_first_and_shows_in_the_whole_row_s_gradient(estimator, keep):
    gate, _ = gumbel_topk(torch.tensor([[9.0, 1.0, NAN, 2.0]]), keep, key=KEY, estimator=estimator)
    assert gate[0, 2] == min(keep, 1)
    assert gradient([[9.0, 1.0, NAN, 2.0]], keep, estimator=estimator).isnan().all()


def test_race_gradient_sums_to_zero_and_does_not_see_a_shift():
    logits, g = logits_of(2, 100, dtype=torch.float64), logits_of(2, 100, seed=8, dtype=torch.float64)
    slopes = []
    for shift in (0.0, 1e3):
        leaf = (logits + shift).requires_grad_()
        gumbel_topk(leaf, 30, key=KEY)[0].backward(g)
        slopes.append(leaf.grad)
    assert slopes[0].sum(dim=1).abs().max() < 1e-14
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-11)


def test_gumbel_topk_refuses_a_second_derivative():
    leaf = logits_of(2, 5).requires_grad_()
    first, = torch.autograd.grad(gumbel_topk(leaf, 2, key=KEY)[0][:, 0].sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()
