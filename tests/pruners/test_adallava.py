"""AdaLLaVA's selection: the published rounds by their definition, our one draw against them, and the scheduler."""

from itertools import permutations

import pytest
import torch

from budgetprune.ops import gumbel_topk
from budgetprune.pruners import AdaLLaVA
from budgetprune.pruners.adallava import (
    latency_quantizing,
    masked_gumbel_softmax,
    masked_gumbel_softmax_topk,
    n_times_gumbel_softmax,
)

LOGITS = torch.tensor([1.0, 0.0, -0.5, 0.3])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_like(x, generator):
    return -torch.empty_like(x).exponential_(generator=generator).log()


def test_a_round_takes_what_the_mask_leaves_and_what_towers_above_the_noise():
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert masked_gumbel_softmax(torch.randn(2, 3), mask).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert masked_gumbel_softmax(torch.tensor([[0.0, 100, 0], [100, 0, 0]])).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("shape, n", [((3, 16), 11), ((1, 1), 1), ((4, 7), 0), ((2, 5), 5)])
def test_n_rounds_take_exactly_n_and_none_twice(shape, n):
    for seed in range(5):
        chosen = n_times_gumbel_softmax(torch.randn(shape, generator=seeded(seed)), n, generator=seeded(seed))
        assert set(chosen.unique().tolist()) <= {0.0, 1.0} and chosen.sum(1).tolist() == [n] * shape[0]


def test_the_gradient_of_n_rounds_is_that_of_the_sum_of_their_softmaxes():
    logits = torch.randn(3, 6, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    upstream = torch.randn(3, 6, dtype=torch.float64, generator=seeded(2))
    got, = torch.autograd.grad((n_times_gumbel_softmax(logits, 4, tau=2.0, generator=seeded(3)) * upstream).sum(),
                               logits)
    generator, taken, soft = seeded(3), torch.zeros(3, 6, dtype=torch.bool), 0
    for _ in range(4):
        each = ((logits + noise_like(logits, generator)) / 2.0).masked_fill(taken, -torch.inf).softmax(1)
        taken = taken.scatter(1, each.argmax(1, keepdim=True), True)
        soft = soft + each
    expected, = torch.autograd.grad((soft * upstream).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().min() > 0, "entries that are not taken learn, too"


def test_inference_takes_the_largest_logits():
    logits = torch.randn(5, 9, generator=seeded(4))
    expected = torch.zeros_like(logits).scatter(1, logits.topk(3, dim=1).indices, 1.0)
    assert torch.equal(n_times_gumbel_softmax(logits, 3, training=False), expected)


def test_k_of_one_draw_are_the_largest_of_its_noisy_softmax_with_its_gradient():
    logits = torch.randn(2, 8, dtype=torch.float64, generator=seeded(5), requires_grad=True)
    mask = torch.zeros(2, 8, dtype=torch.bool).index_fill(1, torch.tensor([1, 4]), True)
    chosen = masked_gumbel_softmax_topk(logits, 3, mask, tau=2.0, generator=seeded(6))
    z = ((logits + noise_like(logits, seeded(6))) / 2.0).masked_fill(mask, -torch.inf)
    assert torch.equal(chosen.bool(), torch.zeros_like(mask).scatter(1, z.topk(3, dim=1).indices, True))
    upstream = torch.arange(16.0, dtype=torch.float64).view(2, 8)
    got, = torch.autograd.grad((chosen * upstream).sum(), logits, retain_graph=True)
    expected, = torch.autograd.grad((z.softmax(1) * upstream).sum(), logits)
    torch.testing.assert_close(got, expected)
    assert masked_gumbel_softmax_topk(logits, 6, mask).detach().bool()[mask].sum() == 0, "also where softmax is 0"


def test_one_noisy_ranking_draws_the_same_sets_as_the_rounds():
    """Both sample without replacement from softmax(logits); the exact inclusion probabilities are sums over orders."""
    weight = LOGITS.exp().tolist()
    exact = torch.zeros(4)
    for first, second in permutations(range(4), 2):
        p = weight[first] / sum(weight) * weight[second] / (sum(weight) - weight[first])
        exact[first] += p
        exact[second] += p
    draws = LOGITS.expand(20000, 4).contiguous()
    rounds = n_times_gumbel_softmax(draws, 2, generator=seeded(7)).mean(0)
    one, _ = gumbel_topk(draws, 2, key=torch.tensor([7, 0]), tau=5.0, estimator="softmax")
    assert (rounds - exact).abs().max() < 0.015 and (one.mean(0) - exact).abs().max() < 0.015


def test_a_latency_is_the_published_number_of_layers_and_what_is_encoded_of_it():
    units, encoded = latency_quantizing(torch.tensor([1.0, 0.85, 0.6, 0.5, 0.2]), 16, 32)
    assert units.tolist() == [16, 11, 3, 0, 0]
    torch.testing.assert_close(encoded, torch.tensor([16, 11, 3, 0, 0]) / 17)


@pytest.mark.parametrize("dtype, lost", [(torch.float32, [105, 106, 117, 118]),
                                         (torch.float16, [102, 106, 110, 114, 127]),
                                         (torch.bfloat16, [105, 112, 116, 123])], ids=str)
def test_the_published_floor_loses_units_of_13b_and_the_exact_form_none(dtype, lost):
    for prefix, total, expected in ((100, 200, lost), (64, 128, []), (16, 32, [])):  # 13B-H, 7B-H, 7B-L
        wanted = torch.arange(prefix, total + 1)
        latency = torch.tensor([n / total for n in wanted.tolist()]).to(dtype)
        floored, _ = latency_quantizing(latency, prefix, total)
        assert wanted[floored != wanted - prefix].tolist() == expected
        assert torch.equal(latency_quantizing(latency, prefix, total, exact=True)[0], wanted - prefix)


@pytest.mark.parametrize("call, match", [
    (lambda: masked_gumbel_softmax(LOGITS[None], torch.ones(1, 4, dtype=torch.bool)), "mask must leave an entry"),
    (lambda: masked_gumbel_softmax(LOGITS[None], tau=0), "tau must be above 0, got 0"),
    (lambda: n_times_gumbel_softmax(LOGITS[None], 5), r"n must be in \[0, 4\], got 5"),
    (lambda: masked_gumbel_softmax_topk(LOGITS[None], 4, torch.tensor([[True, False, False, False]])),
     "mask must leave k=4 entries of each row, got 3"),
    (lambda: latency_quantizing(torch.tensor([1.5]), 16, 32), r"latency must be in \[0, 1\], got \[1.5\]"),
])
def test_what_cannot_be_drawn_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_budgets_count_the_prefix_and_fractions_lose_no_unit():
    layers = AdaLLaVA(8, 32, 32)
    assert [layers.count(b) for b in (16, 27, 32, 0.85, 0.6, 1.0, 0.5)] == [0, 11, 16, 11, 3, 16, 0]
    heads = AdaLLaVA(8, 40, 40, form="heads")
    assert [heads.count(n / 200) for n in range(100, 201)] == list(range(101))
    assert heads.count(105) == 5


@pytest.mark.parametrize("estimator", ["softmax", "race", "fermi"])
def test_exactly_n_layers_run_and_all_logits_get_a_gradient(estimator):
    torch.manual_seed(0)
    method, hidden = AdaLLaVA(8, 12, 4, prefix=4, estimator=estimator), torch.randn(3, 8)
    gate = method(hidden, [0, 3, 8], key=torch.tensor([1, 0]))
    assert gate.sum(1).tolist() == [0, 3, 8] and set(gate.unique().tolist()) == {0.0, 1.0}
    (gate * torch.randn(3, 8)).sum().backward()
    assert (method.head.bias.grad != 0).all()
    logits = method.head(hidden).detach()
    kept = method(hidden, [0, 3, 8])
    assert torch.equal(kept[1].nonzero()[:, 0], logits[1].topk(3).indices.sort().values) and not kept[0].any()
    assert torch.equal(method(hidden, [0, 3, 8], key=torch.tensor([2, 0]), noise=False).detach(), kept)


@pytest.mark.parametrize("noise", [True, False])
def test_heads_and_groups_of_a_layer_are_as_many_and_whole_units(noise):
    torch.manual_seed(1)
    method, hidden = AdaLLaVA(8, 6, 8, prefix=2, form="heads", rank=2), torch.randn(4, 8)
    counts = [0, 5, 11, 16]
    gate = method(hidden, counts, key=torch.tensor([3, 0]), noise=noise)
    each = gate.sum(3)
    assert torch.equal(each[..., 0], each[..., 1]) and (each.remainder(2) == 0).all()
    assert each[..., 0].sum(1).tolist() == [2 * n for n in counts]
    (gate * torch.randn_like(gate)).sum().backward()
    assert (method.head.bias.grad != 0).all()


def test_the_best_units_run_by_the_mean_of_their_heads_and_groups():
    torch.manual_seed(2)
    method, hidden = AdaLLaVA(8, 5, 4, prefix=2, form="heads", rank=2), torch.randn(1, 8)
    logits = method.head(hidden).detach().view(3, 2, 4)
    order = logits.sort(dim=2, descending=True)
    units = order.values.view(3, 2, 2, 2).mean((1, 3))  # [layer, unit]
    for n in range(7):
        each = torch.zeros(6).index_fill(0, units.flatten().topk(n).indices, 1).view(3, 2).sum(1)
        expected = torch.zeros(3, 2, 4)
        for layer, count in enumerate(each.int().tolist()):
            for part in range(2):
                expected[layer, part, order.indices[layer, part, : 2 * count]] = 1
        assert torch.equal(method(hidden, [n])[0], expected)


@pytest.mark.parametrize("options, match", [
    ({"form": "width"}, "form must be one of 'layers', 'heads', got 'width'"),
    ({"prefix": 0}, r"prefix must be in \[1, 31\], got 0"), ({"prefix": 32}, r"prefix must be in \[1, 31\]"),
    ({"form": "heads", "rank": 5}, "rank must divide the 32 heads of a layer, got 5"),
    ({"tau": 0}, "tau must be positive"), ({"estimator": "x"}, "estimator must be one of"),
    ({"answer_from": "x"}, "answer_from must be one of 'latency', 'prompt'"),
])
def test_a_scheduler_that_cannot_be_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        AdaLLaVA(8, 32, 32, **options)


@pytest.mark.parametrize("budget", [15, 33, 0.4])
def test_a_budget_below_the_prefix_or_beyond_the_model_is_refused(budget):
    with pytest.raises(ValueError, match=r"budget must be in \[16, 32\] layers, of which 16 always run"):
        AdaLLaVA(8, 32, 32).count(budget)
