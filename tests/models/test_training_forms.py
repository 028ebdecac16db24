"""What training does with the choice: gates inside attention (test_adaptive.py), on features, or noise for the rest."""

import pytest
import torch
from families import FAMILIES, make_inputs, make_model
from tiny import TOKENS, make_batch, make_llava

import budgetprune
from budgetprune.selectors.adaptive import GATES


def trained(name, method="adaptive", keep=5, **options):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, labels=True)
    model.requires_grad_(False)
    pruning = budgetprune.prune(model, method, keep=keep, **options)
    return model.train(), inputs, pruning


@pytest.mark.parametrize("gate", ["features", "noise"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_in_every_form(name, gate):
    model, inputs, _ = trained(name, gate=gate)
    out = model(**inputs)
    out.loss.backward()
    whole = inputs["input_ids"].shape[1]
    assert out.logits.shape[1] == whole if gate == "noise" else out.logits.shape[1] < whole
    head = model.budget_pruner.selector.controller.head[0].weight.grad
    assert head.isfinite().all() and head.abs().max() > 0


def test_gates_on_features_compute_what_inference_computes():
    model, batch = make_llava(), make_batch(labels=True)
    budgetprune.prune(model, "adaptive", keep=5, gate="features")
    model.train()
    model.budget_pruner.set_noise(False)
    logits = model(**batch).logits.detach()
    kept = model.budget_pruner.plan.kept
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, logits)
    assert torch.equal(model.budget_pruner.plan.kept, kept)


def test_on_features_a_dropped_token_learns_nothing_and_inside_attention_it_does():
    for gate, learns in (("features", False), ("attention", True)):
        model, batch = make_llava(), make_batch(labels=True)
        budgetprune.prune(model, "adaptive", keep=3, gate=gate)
        selector, seen = model.train().budget_pruner.selector, []
        draw = selector.gate
        selector.gate = lambda *a, draw=draw, seen=seen: seen.append(draw(*a)) or seen[-1]
        loss = model(**batch).loss
        gradient, = torch.autograd.grad(loss, seen[0])
        assert bool((gradient[seen[0] == 0] != 0).any()) == learns


def test_noise_takes_nothing_away_where_everything_stays():
    model, batch = make_llava(), make_batch(labels=True)
    expected = model(**batch).loss
    budgetprune.prune(model, "adaptive", keep=TOKENS, gate="noise", estimator="fermi")
    torch.testing.assert_close(model.train()(**batch).loss, expected, rtol=1e-2, atol=1e-2)
    assert model.budget_pruner.plan is None


def test_noise_changes_with_the_seed_and_only_with_it():
    model, batch = make_llava(), make_batch(labels=True)
    budgetprune.prune(model, "adaptive", keep=2, gate="noise")
    model.train()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(model(**batch).loss.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_deeper_levels_of_features_are_noisy_too():
    """Qwen3-VL hands features of several layers on: noise in one of them alone would hide nothing."""
    model, inputs, _ = trained("qwen3_vl", keep=1, gate="noise")
    seen = {}
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**inputs)
    noisy = [level.clone() for level in seen["deepstack_visual_embeds"]]
    model.budget_pruner.selector.acts_on = "attention"
    model(**inputs)
    for dirty, clean in zip(noisy, seen["deepstack_visual_embeds"], strict=True):
        assert dirty.shape == clean.shape and not torch.allclose(dirty, clean, atol=1e-3)


def test_a_second_method_waits_while_the_first_trains():
    for gate in GATES:
        model, batch = make_llava(), make_batch(labels=True)
        budgetprune.prune(model, "adaptive+fastv", keep=(5, 2), layer=1, gate=gate)
        model.train()(**batch).loss.backward()
        assert model.budget_pruner.inside.plan is None
        with torch.no_grad():
            model.eval()(**batch)
        assert model.budget_pruner.inside.plan is not None


def test_the_form_is_saved_and_wrong_ones_are_refused(tmp_path):
    model = make_llava()
    with budgetprune.prune(model, "adaptive_query", keep=5, gate="noise") as pruning:
        pruning.save_pretrained(tmp_path)
    with budgetprune.from_pretrained(model, tmp_path) as pruning:
        assert pruning.selector.acts_on == "noise"
    with pytest.raises(ValueError, match="gate must be one of 'attention', 'features', 'noise', got 'value'"):
        budgetprune.prune(model, "adaptive", keep=5, gate="value")
    with pytest.raises(ValueError, match="estimator of gate 'noise' must be one of 'race', 'fermi', got 'softmax'"):
        budgetprune.prune(model, "adaptive", keep=5, gate="noise", estimator="softmax")
