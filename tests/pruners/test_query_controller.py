"""The controller that hears the question, against its formula."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from budgetprune.pruners import QueryController, VisionTokenController

B, N, C, T, TEXT = 3, 10, 8, 4, 6


def made(**options):
    torch.manual_seed(0)
    return QueryController(C, N, TEXT, query_dim=5, use_cls=False, **options)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, N, C, generator=generator), torch.randn(B, T, TEXT, generator=generator)


def test_logits_are_those_of_the_formula():
    controller, (x, words) = made(), inputs()
    p = {name: value.double() for name, value in controller.state_dict().items()}
    budget = torch.tensor([0.1, 0.5, 1.0])
    got = controller.logits(x, budget, words).detach()
    for b in range(B):
        patches = layer_norm(x[b].double(), (C,), p["norm.weight"], p["norm.bias"])
        e = layer_norm(words[b].double(), (TEXT,), p["text_norm.weight"], p["text_norm.bias"])
        weight = (e @ p["weigh.weight"][0]).softmax(0)
        question = sum(w * (p["query.weight"] @ t + p["query.bias"]) for w, t in zip(weight, e))
        budget_b = controller.budget(budget[b:b + 1]).double()[0]
        for n in range(N):
            hidden = gelu(p["head.0.weight"] @ (patches[n] + budget_b) + p["head.0.bias"])
            own = p["head.2.weight"][0] @ hidden + p["head.2.bias"][0] + p["position"][n]
            meet = (p["key.weight"] @ patches[n]) @ question / 5 ** 0.5
            assert float(got[b, n]) == pytest.approx(float(own + meet), abs=1e-4)


def test_words_that_do_not_exist_have_no_say():
    controller, (x, words) = made().eval(), inputs()
    valid = torch.tensor([[True, True, False, False], [False, True, True, True], [True] * 4])
    budget = torch.full((B,), 0.5)
    got = controller.logits(x, budget, words, valid)
    for b in range(B):
        alone = controller.logits(x[b:b + 1], budget[:1], words[b:b + 1, valid[b]])
        torch.testing.assert_close(got[b], alone[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(got, controller.logits(x, budget, words.masked_fill(~valid[..., None], 1e4), valid))


@pytest.mark.parametrize("words", [0, T])
def test_without_a_question_it_is_the_controller_without_one(words):
    controller, (x, text) = made(), inputs()
    budget, nothing = torch.full((B,), 0.5), torch.zeros(B, words, dtype=torch.bool)
    got = controller.logits(x, budget, text[:, :words], nothing)
    assert torch.equal(got, VisionTokenController.logits(controller, x, budget))
    got.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in controller.parameters())


def test_every_weight_learns():
    controller, (x, words) = made(), inputs()
    (controller.logits(x, torch.full((B,), 0.5), words) * torch.randn(B, N)).sum().backward()
    for name, parameter in controller.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("training", [True, False])
def test_it_keeps_what_the_budget_says(training):
    controller, (x, words) = made().train(training), inputs()
    out = controller(x, [1, 4, 99], key=torch.tensor([0, 0]), text=words)
    assert out.gate.sum(1).tolist() == [1, 4, N]


def test_operations_are_those_of_the_products():
    plain = VisionTokenController(C, N, use_cls=False)
    assert made().flops(N) - plain.flops(N) == 2 * N * (C * 5 + 5)


def test_a_bad_width_is_refused():
    with pytest.raises(ValueError, match="query_dim must be at least 1, got 0"):
        QueryController(C, N, TEXT, query_dim=0)
