"""Fewer image tokens and fewer layers in one model: each does what it does alone, whichever came first."""

import pytest
import torch
from families import make_inputs, make_model
from test_depth import pruned
from tiny import IMAGE_TOKEN, answered, make_batch, state_of

import budgetprune

METHODS = ["uniform", "visionzip", "adaptive"]


def both(model, method, depth_first, keep=5, budget=(2, 3), **options):
    """(token pruning, depth pruning) of one model, made in either order."""
    torch.manual_seed(0)
    if depth_first:
        depth = pruned(model, "layers", budget, **options)
        return budgetprune.prune(model, method, keep=keep), depth
    tokens = budgetprune.prune(model, method, keep=keep)
    return tokens, pruned(model, "layers", budget, **options)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_tokens_and_layers_are_pruned_at_once_in_either_order(llava, method):
    batch, said = make_batch(), []
    llava(**batch)
    before = state_of(llava)
    for depth_first in (False, True):
        tokens, depth = both(llava, method, depth_first)
        logits = llava(**batch).logits
        answer = llava.generate(**batch, max_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE_TOKEN])
        assert tokens.plan.counts() == [5, 5]
        assert logits.shape[1] == tokens.index.shape[1] and depth.plan.runs.sum(1).tolist() == [2, 3]
        said.append((logits, answer))
        (tokens if depth_first else depth).remove()
        (depth if depth_first else tokens).remove()
        assert state_of(llava) == before
    assert torch.equal(said[0][0], said[1][0]) and torch.equal(said[0][1], said[1][1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_full_depth_is_the_pruned_model_itself(name):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    with budgetprune.prune(model, "uniform", keep=4) as tokens:
        expected, valid = model(**inputs).logits, tokens.valid
        with pruned(model, "layers", 4, answer_from="prompt"):
            assert torch.equal(model(**inputs).logits[valid], expected[valid])


@pytest.mark.parametrize("depth_first", [False, True])
def test_training_at_once_equals_inference_at_once_and_teaches_both(llava, depth_first):
    batch = answered(make_batch())
    tokens, depth = both(llava, "adaptive", depth_first)
    with torch.no_grad():
        skipped = llava(**batch).loss
        kept, runs = tokens.plan.kept, depth.plan.runs
    llava.budget_pruner.set_noise(False)
    llava.budget_depth.set_noise(False)
    gated = llava.train()(**batch, use_cache=False).loss
    torch.testing.assert_close(gated.detach(), skipped, atol=1e-5, rtol=1e-4)
    assert torch.equal(depth.plan.runs, runs) and kept.shape == (2, 5)
    gated.backward()
    for part in (llava.budget_pruner, llava.budget_depth):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0


@torch.no_grad()
def test_both_are_saved_in_one_folder(llava, tmp_path):
    batch = make_batch()
    tokens, depth = both(llava, "adaptive", False)
    expected = llava(**batch).logits
    tokens.save_pretrained(tmp_path)
    depth.save_pretrained(tmp_path)
    tokens.remove()
    depth.remove()
    with budgetprune.from_pretrained(llava, tmp_path), budgetprune.depth_from_pretrained(llava, tmp_path):
        assert torch.equal(llava(**batch).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("depth_first", [False, True])
@pytest.mark.parametrize("method", ["fastv", "uniform+fastv"])
def test_methods_inside_the_language_model_are_refused_beside_it(llava, method, depth_first):
    both(llava, method, depth_first, keep=5 if method == "fastv" else (8, 4))
    with pytest.raises(ValueError, match="method of prune.. must act before the language model where its depth"):
        llava(**make_batch())


def test_lora_beside_gated_heads_is_refused_where_it_would_pass_them_by(llava):
    from peft import LoraConfig, get_peft_model

    batch = answered(make_batch())
    budgetprune.prune_depth(llava, budget=5, form="heads", prefix=1, rank=2)
    adapted = get_peft_model(llava, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|o_proj)"))
    with pytest.raises(ValueError, match="prune_depth must come after what replaces layers"):
        adapted.train()(**batch, use_cache=False)


@pytest.mark.parametrize("form, options", [("layers", {}), ("heads", {"rank": 2})])
def test_lora_is_trained_beside_it(llava, form, options):
    from peft import LoraConfig, get_peft_model

    batch = answered(make_batch())
    adapted = get_peft_model(llava, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|o_proj)"))
    budgetprune.prune_depth(llava, budget=3 if form == "layers" else 5, form=form, prefix=1, **options)
    adapted.train()(**batch, use_cache=False).loss.backward()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert {"budget_depth", "lora_B"} <= {part for name in trained for part in name.split(".")}
    assert all(gradient is not None for gradient in trained.values())
    adapted.eval()
    with torch.no_grad():
        skipped, plan = adapted(**batch).logits, llava.budget_depth.last_plan()
        assert int(plan.runs.sum(1).max()) <= 4
    llava.budget_depth.set_noise(False)
    gated = adapted.train()(**batch, use_cache=False).logits.detach()
    there = batch["attention_mask"].bool()
    torch.testing.assert_close(gated[there], skipped[there], atol=1e-5, rtol=1e-4)
