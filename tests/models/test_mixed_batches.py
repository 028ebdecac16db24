"""Batches in which a prompt has no image, and another has two: every row says what it says alone."""

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO, make_inputs, make_model

import budgetprune
from budgetprune.selectors.base import find

METHODS = [name for name in budgetprune.methods() if name not in ("none", "random")] + ["uniform+fastv"]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return make_model(name)


def budget(method):
    """For images (0, 2) in two prompts: of a pair, per image and then per prompt; inside the model, per prompt."""
    if "+" in method:
        return [4, 3], [2, 3]
    return [9, 5] if find(method).place == "llm" else [2, 3]


def alone(inputs, row):
    """Row `row` of images (0, 2) by itself: only the second has something for the encoder."""
    exists = inputs["attention_mask"][row].bool()
    shape = inputs["input_ids"].shape
    one = {key: value[row:row + 1, exists] for key, value in inputs.items() if value.shape == shape}
    return one if row == 0 else one | {key: value for key, value in inputs.items() if value.shape != shape}


def of_row(keep, row, method):
    if "+" in method:
        return keep[0], keep[1][row]
    return keep[row] if find(method).place == "llm" else keep


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_without_images_beside_one_with_two_says_what_each_says_alone(name, model, method):
    inputs, _ = make_inputs(name, model, images=(0, 2), padding="right")
    keep = budget(method)
    torch.manual_seed(0)  # an untrained controller begins at random
    with budgetprune.prune(model, method, keep=keep) as pruning:
        logits, index = model(**inputs).logits, pruning.index
        exists = inputs["attention_mask"].bool() if index is None else pruning.valid
        for row in range(2):
            pruning.set_keep(of_row(keep, row, method))
            one = model(**alone(inputs, row)).logits[0]
            mine = logits[row, exists[row]]
            if find(method.split("+")[-1]).place == "llm":  # what was dropped has logits without information
                one, mine = one[-3:], mine[-3:]
            torch.testing.assert_close(mine, one, atol=3e-4, rtol=3e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["uniform", "fastv", "dart", "sparsevlm", "uniform+fastv"])
def test_generation_of_a_mixed_batch_says_what_each_prompt_says_alone(name, model, method):
    inputs, _ = make_inputs(name, model, images=(0, 2))
    keep = budget(method)
    with budgetprune.prune(model, method, keep=keep) as pruning:
        together = model.generate(**inputs, **GREEDY)
        for row in range(2):
            pruning.set_keep(of_row(keep, row, method))
            one = model.generate(**alone(inputs, row), **GREEDY)
            assert one[0, -4:].tolist() == together[row, -4:].tolist()
