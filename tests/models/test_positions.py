"""Position ids of what stays: original or compact, as the caller asks."""

import pytest
import torch
from families import make_inputs, make_model
from hand_built import hand_built_logits

import budgetprune
from budgetprune.selectors.base import find

IMAGES = {"images": (1, 1), "padding": "left"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next", "paligemma"])
@pytest.mark.parametrize("method", ["uniform", "adaptive", "tome"])
def test_both_numberings_equal_what_is_put_together_by_hand(name, method):
    model = make_model(name)
    inputs, lengths = make_inputs(name, model, **IMAGES)
    logits = {}
    for positions in ("original", "compact"):
        torch.manual_seed(2)  # a controller begins at random
        with budgetprune.prune(model, method, keep=[3, 2], positions=positions) as pruning:
            logits[positions], plan, valid = model(**inputs).logits, pruning.plan, pruning.valid
        if plan.merge is not None and name == "llava":
            continue  # merged before the projector: see test_prune.py
        expected = hand_built_logits(name, model, inputs, lengths, plan, positions)
        for row, exists, want in zip(logits[positions], valid, expected, strict=True):
            torch.testing.assert_close(row[exists], want, atol=2e-4, rtol=2e-4)
    assert (logits["original"] - logits["compact"]).abs().max() > 1e-3
    torch.manual_seed(2)
    with budgetprune.prune(model, method, keep=[3, 2]):
        assert torch.equal(model(**inputs).logits, logits[find(method).positions])


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_generation_counts_as_the_forward_does(positions):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, **IMAGES)
    with budgetprune.prune(model, "uniform", keep=3, positions=positions):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, output_logits=True,
                             return_dict_in_generate=True)
        more = dict(inputs, input_ids=out.sequences, attention_mask=torch.nn.functional.pad(
            inputs["attention_mask"], (0, 3), value=1))
        logits = model(**more).logits[:, -4:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), logits, atol=2e-4, rtol=2e-4)


def test_a_saved_pruner_keeps_its_numbering(tmp_path):
    model = make_model("llava")
    with budgetprune.prune(model, "uniform", keep=4, positions="original") as pruning:
        pruning.save_pretrained(tmp_path)
    with budgetprune.from_pretrained(model, tmp_path):
        assert model.budget_pruner.asked_positions == "original"


def test_a_pruner_saved_without_a_wish_numbers_as_its_next_model_does(tmp_path):
    with budgetprune.prune(make_model("llava"), "uniform", keep=4) as pruning:
        pruning.save_pretrained(tmp_path)
    model = make_model("qwen2_5_vl")
    inputs, _ = make_inputs("qwen2_5_vl", model)
    with budgetprune.from_pretrained(model, tmp_path) as pruning, torch.no_grad():
        model(**inputs)
        assert pruning.plan.counts() == [4, 4]


@torch.no_grad()
def test_a_saved_pruner_draws_as_it_did(tmp_path):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model)
    with budgetprune.prune(model, "random", keep=4, seed=7) as pruning:
        pruning.save_pretrained(tmp_path)
        model(**inputs)
        kept = pruning.plan.kept
    with budgetprune.from_pretrained(model, tmp_path) as pruning:
        model(**inputs)
        assert torch.equal(pruning.plan.kept, kept)


@pytest.mark.parametrize("name, method, positions, message", [
    ("llava", "uniform", "new", "positions must be one of 'original', 'compact', got 'new'"),
    ("qwen2_vl", "uniform", "compact", "positions must be 'original' or None: in Qwen2VL.* places in the image"),
    ("llava", "fastv", "compact", "positions must be 'original' or None: fastv drops tokens behind layers"),
])
def test_a_numbering_that_cannot_be_is_refused(name, method, positions, message):
    model = make_model(name)
    with pytest.raises(ValueError, match=message):
        budgetprune.prune(model, method, keep=3, positions=positions)
    assert "budget_pruner" not in model._modules


def test_original_positions_may_be_asked_for_where_there_is_no_choice():
    for name, method in (("qwen2_vl", "uniform"), ("llava", "fastv")):
        model = make_model(name)
        inputs, _ = make_inputs(name, model)
        with torch.no_grad(), budgetprune.prune(model, method, keep=3):
            expected = model(**inputs).logits
        with torch.no_grad(), budgetprune.prune(model, method, keep=3, positions="original"):
            assert torch.equal(model(**inputs).logits, expected)
