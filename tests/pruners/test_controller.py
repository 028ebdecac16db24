"""The budget embedding and the controller: shapes, counts, and that the budget is heard."""

import math

import pytest
import torch

from budgetprune.pruners import BudgetEmbedding, VisionTokenController
from budgetprune.pruners.controller import CONDITIONINGS

B, N, C = 3, 16, 8
KEY = torch.tensor([1, 0])


def features(seed=0):
    return torch.randn(B, N, C, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_a_budget_is_embedded_to_the_width_asked_for(shape):
    embedding = BudgetEmbedding(24)
    out = embedding(torch.rand(shape))
    assert out.shape == (5, 24) and out.dtype == torch.float32
    assert embedding.norm.normalized_shape == (256,) and embedding.mlp[0].out_features == 256


def test_the_embedding_is_of_sines_and_cosines_of_the_scaled_budget():
    embedding, seen = BudgetEmbedding(4, num_freqs=3), []
    embedding.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedding(torch.tensor([0.25]))
    angles = [2 * math.pi * 0.25 * 10000 ** (-k / 3) for k in range(3)]
    expected = torch.tensor([[*map(math.sin, angles), *map(math.cos, angles)]])
    torch.testing.assert_close(seen[0], expected)


def test_a_bad_budget_is_refused():
    with pytest.raises(ValueError, match=r"budget must be \[B\] or \[B, 1\], got shape \[2, 2\]"):
        BudgetEmbedding(4)(torch.rand(2, 2))
    with pytest.raises(TypeError, match="budget must be a float tensor.*got torch.int64"):
        BudgetEmbedding(4)(torch.tensor([1, 2]))


@pytest.mark.parametrize("keep, counts", [
    (4, [4] * 3), (0, [1] * 3), (99, [16] * 3), (0.25, [4] * 3), ([1, 5, 0.5], [1, 5, 8]),
    (torch.tensor([2, 3, 4]), [2, 3, 4]),
], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_the_controller_keeps_what_the_budget_says(keep, counts, training):
    controller = VisionTokenController(C, N, use_cls=False).train(training)
    out = controller(features(), keep, key=KEY)
    assert out.logits.shape == out.gate.shape == (B, N)
    assert out.gate.sum(1).tolist() == counts
    assert set(out.gate.unique().tolist()) <= {0.0, 1.0}
    for row, gate in zip(out.kept, out.gate):
        assert row[row >= 0].tolist() == gate.nonzero().flatten().tolist()


def test_inference_keeps_the_largest_logits_and_training_draws():
    controller = VisionTokenController(C, N)
    best = controller.eval()(features(), 5)
    expected = best.logits.topk(5, dim=1).indices.sort(dim=1).values
    assert torch.equal(best.kept.long(), expected)
    controller.train()
    drawn = [controller(features(), 5, key=torch.tensor([seed, 0])).kept for seed in range(8)]
    assert len({str(kept.tolist()) for kept in drawn}) > 4
    assert torch.equal(drawn[0], controller(features(), 5, key=torch.tensor([0, 0])).kept)
    assert torch.equal(controller(features(), 5, key=KEY, noise=False).kept, best.kept)
    with pytest.raises(ValueError, match="key must be given in training"):
        controller(features(), 5)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_budget_changes_the_order_of_the_logits_unless_it_is_left_out(conditioning):
    torch.manual_seed(0)
    controller = VisionTokenController(C, N, conditioning=conditioning, hidden_dim=32)
    x = features()
    low, high = (controller.logits(x, torch.full((B,), b)) for b in (0.1, 0.9))
    if conditioning == "none":
        assert torch.equal(low, high)
    else:
        shift = (low - high) - (low - high).mean(1, keepdim=True)
        assert shift.abs().max() > 1e-3


@pytest.mark.parametrize("conditioning", ["add", "concat", "dot", "cross"])
@pytest.mark.parametrize("estimator", ["race", "fermi", "softmax"])
def test_every_parameter_gets_a_gradient(conditioning, estimator):
    controller = VisionTokenController(C, N, conditioning=conditioning, estimator=estimator)
    worth = torch.randn(B, N, generator=torch.Generator().manual_seed(2))
    (controller(features(), [2, 5, 9], key=KEY).gate * worth).sum().backward()
    for name, parameter in controller.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert controller.head[0].weight.grad.abs().max() > 0
    assert controller.budget.mlp[0].weight.grad.abs().max() > 0


def test_a_dot_product_of_budget_and_patch_is_added_to_the_logit():
    torch.manual_seed(0)
    controller = VisionTokenController(C, N, conditioning="dot")
    x, share = features(), torch.tensor([0.1, 0.5, 0.9])
    patches, embedded = controller.norm(x), controller.budget(share)
    weight = controller.meet.weight.double()
    for b in range(B):
        for n in range(N):
            own = controller.head(patches[b, n])[0] + controller.position[n]
            dot = embedded[b].double() @ (weight @ patches[b, n].double()) / C ** 0.5
            assert float(controller.logits(x, share)[b, n]) == pytest.approx(float(own + dot), abs=1e-5)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("state_dim", [None, 5])
def test_a_state_of_the_encoder_takes_the_place_of_the_embedding(conditioning, state_dim):
    torch.manual_seed(0)
    controller = VisionTokenController(C, N, fusion="encoder", conditioning=conditioning, state_dim=state_dim)
    x, state = features(), torch.randn(B, state_dim or C, requires_grad=True)
    low, high = (controller.logits(x, torch.full((B,), share), state=state) for share in (0.1, 0.9))
    assert torch.equal(low, high), "the budget is in the state, and nowhere else"
    out = controller(x, [2, 5, 9], key=KEY, state=state)
    assert out.gate.sum(1).tolist() == [2, 5, 9]
    (out.gate * torch.randn(B, N)).sum().backward()
    assert (state.grad is None) == (conditioning == "none")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"features must be \[B, 16, C\], got shape \[3, 15, 8\]"):
        VisionTokenController(C, N).eval()(features()[:, 1:], 4)
    for arguments, match in (({"tau": 0.0}, "tau must be positive, got 0.0"),
                             ({"tau": "x"}, "tau must be a number, got 'x'"),
                             ({"use_cls": 1}, "use_cls must be True or False, got 1"),
                             ({"hidden_dim": -3}, "hidden_dim must be at least 1, got -3"),
                             ({"fusion": "add"}, "fusion must be one of 'post', 'encoder', got 'add'"),
                             ({"conditioning": "sum"}, "conditioning must be one of"),
                             ({"estimator": "reinmax"}, "estimator must be one of")):
        with pytest.raises((TypeError, ValueError), match=match):
            VisionTokenController(C, N, **arguments)
