"""Inclusion probabilities and the noise that stands in for tokens: laws, and gradients against differences."""

import pytest
import torch

from budgetprune.ops import gumbel_topk
from budgetprune.pruners.relaxation import inclusion_probabilities, normal_noise, throttle

KEY = torch.tensor([7, 3])


def logits(b=4, n=9, seed=0, scale=3.0):
    return scale * torch.randn(b, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("estimator", ["race", "fermi"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_shares_sum_to_the_budget_and_follow_the_logits(estimator, scale):
    x = logits(scale=scale)
    share = inclusion_probabilities(x, [1, 3, 8, 9], estimator=estimator)
    torch.testing.assert_close(share.sum(1), torch.tensor([1.0, 3, 8, 9], dtype=torch.float64), rtol=0, atol=1e-9)
    assert (share[3] == 1).all()
    order = x.argsort(1)
    assert (share.gather(1, order).diff(dim=1) >= 0).all()


def test_equal_logits_share_alike():
    torch.testing.assert_close(inclusion_probabilities(torch.zeros(1, 8), 2), torch.full((1, 8), 0.25))


@pytest.mark.parametrize("estimator", ["race", "fermi"])
def test_the_gradient_of_the_shares_is_that_of_differences(estimator):
    x = logits(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: inclusion_probabilities(y, [2, 5], tau=1.5, estimator=estimator), x)


@pytest.mark.parametrize("estimator", ["race", "fermi"])
def test_the_gate_of_the_op_has_the_gradient_of_the_shares(estimator):
    """Without noise both are d of the same row, up to what one token's place costs: the op's is defined by it."""
    x, worth = logits(3, 7), torch.randn(3, 7, dtype=torch.float64)
    drawn, exact = x.clone().requires_grad_(), x.clone().requires_grad_()
    gate, _ = gumbel_topk(drawn, 3, key=torch.tensor([0, 0]), estimator=estimator, noise="none")
    (gate * worth).sum().backward()
    (inclusion_probabilities(exact, 3, estimator=estimator) * worth).sum().backward()
    torch.testing.assert_close(drawn.grad, exact.grad, rtol=1e-6, atol=1e-9)


def test_wrong_counts_and_estimators_are_refused():
    with pytest.raises(ValueError, match=r"counts must be in \[1, N=9\], got \[0, 0, 0, 0\]"):
        inclusion_probabilities(logits(), 0)
    with pytest.raises(ValueError, match="estimator must be one of .*got 'softmax'"):
        inclusion_probabilities(logits(), 2, estimator="softmax")


def test_a_token_wholly_wanted_stays_and_one_unwanted_is_noise():
    tokens = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    share = torch.ones(2, 50)
    torch.testing.assert_close(throttle(tokens, share, KEY), tokens, rtol=0, atol=2e-2)
    gone = throttle(tokens, share * 0, KEY)
    assert torch.corrcoef(torch.stack([gone.flatten(), tokens.flatten()]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_mean_and_variance_of_the_tokens_stay(share):
    tokens = torch.randn(1, 4096, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2, 5, 0.1]) + 3
    noisy = throttle(tokens, torch.full((1, 4096), share), KEY)
    torch.testing.assert_close(noisy.std(1), tokens.std(1), rtol=0.05, atol=0)
    torch.testing.assert_close(noisy.mean(1), tokens.mean(1), rtol=0.05, atol=0.3)


def test_the_gradient_reaches_the_shares_at_both_ends():
    tokens, share = torch.randn(1, 4, 8), torch.tensor([[0.0, 0.2, 1.0, 0.7]], requires_grad=True)
    throttle(tokens, share, KEY).square().sum().backward()
    assert share.grad.isfinite().all() and (share.grad != 0).all()


def test_noise_is_normal_and_a_function_of_its_key():
    noise = normal_noise(KEY, torch.empty(2, 300, 333))
    assert abs(float(noise.mean())) < 0.01 and float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.005)
    assert torch.equal(noise, normal_noise(KEY, torch.empty(2, 300, 333)))
    rows = normal_noise(torch.tensor([[7, 3], [8, 3]]), torch.empty(2, 5, 7))
    assert torch.equal(rows[:1], normal_noise(torch.tensor([[7, 3]]), torch.empty(1, 5, 7)))
    assert not torch.equal(rows[0], rows[1])
