"""prune() and its Pruning refuse what they cannot use by name, and change nothing by it."""

import pytest
import torch
from families import make_inputs, make_model
from test_prune import state_of
from tiny import make_batch

import budgetprune
from budgetprune.selectors import build
from budgetprune.selectors.adaptive import Adaptive
from budgetprune.selectors.fastv import FastV

METHOD = "method must be a name, a Selector, or a pair of two names or of two Selectors, got "


@pytest.mark.parametrize("method, error, match", [
    (None, TypeError, METHOD + "None"),
    (3, TypeError, METHOD + "3"),
    (FastV, TypeError, METHOD + "<class "),
    ((FastV, FastV), TypeError, METHOD + r"\(<class "),
    ((), TypeError, METHOD + r"\(\)"),
    (("uniform", FastV()), TypeError, METHOD + r"\('uniform', FastV\(layer=2\)\)"),
    (("uniform", 3), TypeError, METHOD + r"\('uniform', 3\)"),
    (("uniform",), ValueError, "method must be one name, or two, got 1: uniform"),
    ((FastV(),), ValueError, "method must be one name, or two, got 1: fastv"),
    (("uniform", "random", "fastv"), ValueError, "method must be one name, or two, got 3: uniform.random.fastv"),
    (("fastv", "uniform"), ValueError, "method must be one name, or two: .* in this order, got fastv.uniform"),
    (("uniform", "slowv"), ValueError, "unknown method 'slowv'; known: adaptive"),
    (("uniform+fastv", "fastv"), ValueError, "unknown method 'uniform.fastv'; known: adaptive"),
])
def test_a_method_of_the_wrong_kind_is_named(llava, method, error, match):
    before = state_of(llava)
    with pytest.raises(error, match=f"^{match}"):
        budgetprune.prune(llava, method, keep=(8, 4))
    assert state_of(llava) == before


@torch.no_grad()
@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_of_names_is_the_same_as_both_joined_by_plus(llava, kind):
    batch = make_batch()
    with budgetprune.prune(llava, "uniform+fastv", keep=(8, 4), layer=3):
        expected = llava(**batch).logits
    with budgetprune.prune(llava, kind(["uniform", "fastv"]), keep=(8, 4), layer=3) as pruning:
        assert torch.equal(llava(**batch).logits, expected)
        assert (pruning.selector, pruning.inside.selector) == (build("uniform"), build("fastv", layer=3))


@pytest.mark.parametrize("model", ["llava", None, 3, torch.nn.Linear(2, 2), torch.nn.Linear], ids=repr)
def test_what_is_no_model_is_refused_with_the_list_of_those_that_are(model):
    match = f"model must be one of LlavaForConditionalGeneration.*got {type(model).__name__}"
    with pytest.raises(TypeError, match=match):
        budgetprune.prune(model, "uniform", keep=4)
    with pytest.raises(TypeError, match=match):
        budgetprune.unprune(model)


@pytest.mark.parametrize("train_keep, error", [
    (5, TypeError), ("12", TypeError), (("a", 2), TypeError), ((1.0, 2), TypeError), ((True, 2), TypeError),
    ({1, 2}, TypeError), ((1, 2, 3), ValueError), ((2,), ValueError), ((0, 2), ValueError), ((5, 2), ValueError),
], ids=repr)
def test_a_wrong_train_keep_is_named_and_leaves_model_and_selector_alone(llava, train_keep, error):
    before, method = state_of(llava), Adaptive()
    with pytest.raises(error, match=r"train_keep must be two ints \(K_min, K_max\) with 1 <= K_min <= K_max, got "):
        budgetprune.prune(llava, method, keep=4, train_keep=train_keep)
    assert state_of(llava) == before and method.controller is None


@pytest.mark.parametrize("seed, error, match", [
    ("a", TypeError, "seed must be an int, got 'a'"), (1.5, TypeError, "seed must be an int, got 1.5"),
    (True, TypeError, "seed must be an int, got True"), (None, TypeError, "seed must be an int, got None"),
    (-1, ValueError, r"seed must be in \[0, 9223372036854775807\], got -1"),
    (2**63, ValueError, r"seed must be in \[0, 9223372036854775807\], got 9223372036854775808"),
], ids=repr)
@pytest.mark.parametrize("method", ["random", "fastv"])
def test_a_wrong_seed_is_named_whether_the_method_draws_or_not(llava, method, seed, error, match):
    with pytest.raises(error, match=match):
        budgetprune.prune(llava, method, keep=4, seed=seed)
    assert "budget_pruner" not in llava._modules


@torch.no_grad()
def test_the_largest_seed_draws(llava):
    with budgetprune.prune(llava, "random", keep=4, seed=2**63 - 1) as pruning:
        llava(**make_batch())
        assert pruning.plan.counts() == [4, 4]


@torch.no_grad()
def test_a_list_of_budgets_of_the_wrong_length_says_what_it_had_to_have_one_of():
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, images=(2, 1))
    with budgetprune.prune(model, "uniform", keep=[3, 4]):
        with pytest.raises(ValueError, match="^keep must have 3 entries, one per image, got 2$"):
            model(**inputs)
    with budgetprune.prune(model, "fastv", keep=[3, 4, 5]):
        with pytest.raises(ValueError, match="^keep must have 2 entries, one per row of the prompt, got 3$"):
            model(**inputs)
        with pytest.raises(ValueError, match="^keep must have 2 entries, one per row of the prompt, got 3$"):
            model.generate(**inputs, max_new_tokens=2, num_beams=2)
    with budgetprune.prune(model, "uniform+fastv", keep=([3, 4, 5], [2])):
        with pytest.raises(ValueError, match="^keep must have 2 entries, one per row of the prompt, got 1$"):
            model(**inputs)


def test_an_error_inside_the_block_is_seen_where_the_model_was_unpruned_there(llava):
    with pytest.raises(KeyError, match="the block's own"), budgetprune.prune(llava, "uniform", keep=4):
        budgetprune.unprune(llava)
        raise KeyError("the block's own")
    with budgetprune.prune(llava, "uniform", keep=4) as pruning:
        pruning.remove()
    assert "budget_pruner" not in llava._modules


def test_a_pruning_that_was_removed_says_so(llava, tmp_path):
    pruning = budgetprune.prune(llava, "uniform", keep=4)
    pruning.remove()
    for name in ("plan", "inside", "stages", "index", "valid", "selector"):
        with pytest.raises(RuntimeError, match="^model is not pruned any more$"):
            getattr(pruning, name)
    for call in (lambda: pruning.set_keep(3), lambda: pruning.save_pretrained(tmp_path / "new")):
        with pytest.raises(RuntimeError, match="^model is not pruned any more$"):
            call()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keep, error, match", [
    ((5, -1), ValueError, "keep must be at least 0, got -1"), ((5, "half"), TypeError, "keep must be an int"),
    ((5, None), ValueError, "keep must be given: fastv"), ((-1, 3), ValueError, "keep must be at least 0, got -1"),
    (("half", 3), TypeError, "keep must be an int"), ((None, 3), ValueError, "keep must be given: uniform"),
    (5, ValueError, "keep must be a pair for two methods"), ((5, 3, 1), ValueError, "keep must be a pair"),
], ids=repr)
def test_of_two_budgets_both_change_or_neither(llava, keep, error, match):
    with budgetprune.prune(llava, "uniform+fastv", keep=(8, 4)) as pruning:
        with pytest.raises(error, match=match):
            pruning.set_keep(keep)
        assert (llava.budget_pruner.budget.keep, pruning.inside.budget.keep) == (8, 4)
        pruning.set_keep((5, 3))
        assert (llava.budget_pruner.budget.keep, pruning.inside.budget.keep) == (5, 3)
