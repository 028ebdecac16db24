"""peft around a pruned model: LoRA changes what the methods look at, merging keeps what they chose."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_batch, make_llava

import budgetprune

QK = r".*language_model.*\.(q_proj|k_proj)"


def exact():
    """Merging multiplies in another order, and these weights are large: in double precision that is nothing."""
    batch = make_batch()
    return batch | {"pixel_values": batch["pixel_values"].double()}, make_llava().double()


def with_lora(model, targets=QK, **options):
    """LoRA that changes its layers from the start; peft itself begins at zero."""
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, **options)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wrapped


@torch.no_grad()
@pytest.mark.parametrize("first", ["prune", "lora"])
def test_lora_on_queries_and_keys_decides_what_fastv_keeps(first):
    (batch, plain), merged = exact(), with_lora(exact()[1]).merge_and_unload()
    without = budgetprune.prune(plain, "fastv", keep=4)
    plain(**batch)
    expected = budgetprune.prune(merged, "fastv", keep=4)
    logits = merged(**batch).logits
    _, model = exact()
    if first == "prune":
        pruning = budgetprune.prune(model, "fastv", keep=4)
        lora = with_lora(model)
    else:
        lora = with_lora(model)
        pruning = budgetprune.prune(model, "fastv", keep=4)
    torch.testing.assert_close(lora(**batch).logits, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(pruning.plan.kept, expected.plan.kept)
    assert not torch.equal(pruning.plan.kept, without.plan.kept), "LoRA must matter for this test to mean anything"


@torch.no_grad()
@pytest.mark.parametrize("method", ["fastv", "prumerge_plus", "uniform"])
def test_merging_lora_keeps_a_model_pruned(method):
    batch, model = exact()
    unpruned = with_lora(exact()[1])(**batch).logits
    pruning = budgetprune.prune(model, method, keep=4)
    lora = with_lora(model)
    logits, kept = lora(**batch).logits, pruning.plan.kept
    tokens = lora.generate(**batch, max_new_tokens=4, do_sample=False)
    merged = lora.merge_and_unload()
    assert merged is model
    torch.testing.assert_close(merged(**batch).logits, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(pruning.plan.kept, kept)
    assert torch.equal(merged.generate(**batch, max_new_tokens=4, do_sample=False), tokens)
    pruning.remove()
    torch.testing.assert_close(merged(**batch).logits, unpruned, atol=1e-4, rtol=1e-4)


def shaken(model, amount):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.budget_pruner.parameters():
            if parameter.requires_grad:
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def test_a_disabled_adapter_is_the_pruner_it_began_from_at_the_budget_of_now():
    batch, model = make_batch(), make_llava()
    pruning = budgetprune.prune(model, "adaptive", keep=5)
    pruning.set_keep(3)
    model(**batch)
    before = pruning.plan.kept
    pruning.set_keep(5)
    lora = with_lora(model, modules_to_save=["budget_pruner"])
    shaken(model, 1.0)
    pruning.set_keep(3)
    lora(**batch)
    trained = pruning.plan.kept
    assert trained.shape == (2, 3) and not torch.equal(trained, before)
    with lora.disable_adapter():
        lora(**batch)
        assert torch.equal(pruning.plan.kept, before)
    lora(**batch)
    assert torch.equal(pruning.plan.kept, trained)


@torch.no_grad()
def test_two_methods_that_work_together_get_their_budgets_under_an_adapter():
    batch, model = make_batch(), make_llava()
    pruning = budgetprune.prune(model, "adaptive+fastv", keep=(8, 4))
    lora = with_lora(model, modules_to_save=["budget_pruner"])
    pruning.set_keep((5, 2))
    lora(**batch)
    assert pruning.plan.counts() == [5, 5] and pruning.stages[0].counts() == [2, 2]
    with lora.disable_adapter():
        lora(**batch)
        assert pruning.plan.counts() == [5, 5]


@torch.no_grad()
def test_two_adapters_on_one_model_bring_two_pruners(tmp_path):
    batch, expected = make_batch(), {}
    for name, amount in (("one", 1.0), ("two", -1.0)):
        model = make_llava()
        pruning = budgetprune.prune(model, "adaptive", keep=4)
        lora = with_lora(model, modules_to_save=["budget_pruner"])
        shaken(model, amount)
        logits = lora(**batch).logits
        expected[name] = logits, pruning.plan.kept
        lora.save_pretrained(tmp_path / name)
    assert not torch.equal(expected["one"][1], expected["two"][1])

    from peft import PeftModel

    model = make_llava()
    pruning = budgetprune.prune(model, "adaptive", keep=4)
    both = PeftModel.from_pretrained(model, tmp_path / "one", adapter_name="one").eval()
    both.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("two", "one"):
        both.set_adapter(name)
        assert torch.equal(both(**batch).logits, expected[name][0])
        assert torch.equal(pruning.plan.kept, expected[name][1])


def test_prune_names_the_model_inside_when_it_is_given_the_wrapper():
    lora = with_lora(make_llava())
    with pytest.raises(TypeError, match="get_base_model"):
        budgetprune.prune(lora, "uniform", keep=4)
    budgetprune.prune(lora.get_base_model(), "uniform", keep=4)
    batch = make_batch()
    assert lora(**batch).logits.shape[1] < batch["input_ids"].shape[1]
