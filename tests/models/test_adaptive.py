"""The trained pruner in a model: gates in training are exactly the pruned sequence at inference, and they learn."""

import pytest
import torch
from tiny import IMAGE_TOKEN, PAD, TOKENS, make_batch, make_llava

import budgetprune

ESTIMATORS = ["race", "fermi", "softmax"]


def gates_of(model):
    """Lets a test see the gate that the next training forward draws."""
    seen, selector = [], model.budget_pruner.selector
    draw = selector.gate
    selector.gate = lambda *arguments: seen.append(draw(*arguments)) or seen[-1]
    return seen


@pytest.mark.parametrize("use_cls", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gates_in_attention_equal_the_gathered_sequence_with_original_positions(attention, use_cls):
    model, batch = make_llava(attention), make_batch(labels=True)
    # The first word after the image is predicted by the last image token, and that may be a dropped one;
    # the first of a padded row by padding, and what that says is nobody's contract.
    before = batch["input_ids"].roll(1, 1)
    batch["labels"] = batch["labels"].masked_fill((before == IMAGE_TOKEN) | (before == PAD), -100)
    budgetprune.prune(model, "adaptive", keep=5, tau=1.0, use_cls=use_cls)
    seen = gates_of(model.train())
    loss = model(**batch).loss
    gate = seen[0].detach()
    assert gate.sum(1).tolist() == [5, 5] and set(gate.unique().tolist()) == {0.0, 1.0}
    # At inference the same tokens are kept if the logits say what the gate said.
    model.eval()
    model.budget_pruner.selector.controller.logits = lambda features, budget: gate
    with torch.no_grad():
        pruned = model(**batch).loss
        kept = model.budget_pruner.plan.mask(TOKENS)
    assert torch.equal(kept, gate.bool())
    torch.testing.assert_close(loss.detach(), pruned, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_only_the_language_model_loss_reaches_the_controller(llava, estimator):
    batch = make_batch(labels=True)
    llava.requires_grad_(False)
    budgetprune.prune(llava, "adaptive", keep=5, estimator=estimator)
    llava.train()
    llava(**batch).loss.backward()
    trained = {name: p for name, p in llava.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("budget_pruner.") for name in trained)
    # A bias that shifts all logits alike changes no choice: the exact-K estimators know that.
    flat = "budget_pruner.selector.controller.head.2.bias"
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        if name != flat:
            assert parameter.grad.abs().max() > 0, name
    assert trained[flat].grad.abs().max() < 1e-5


def test_a_dropped_token_learns_what_it_would_have_been_worth(llava):
    batch = make_batch(labels=True)
    llava.requires_grad_(False)
    budgetprune.prune(llava, "adaptive", keep=3)
    seen = gates_of(llava.train())
    loss = llava(**batch).loss
    gradient, = torch.autograd.grad(loss, seen[0])
    dropped = seen[0] == 0
    assert (gradient[dropped] != 0).all()


def test_each_training_step_draws_its_count_from_the_range(llava):
    batch = make_batch(labels=True)
    budgetprune.prune(llava, "adaptive", keep=5, train_keep=(2, 4))
    seen = gates_of(llava.train())
    torch.manual_seed(0)
    for _ in range(30):
        llava(**batch)
    counts = [gate.sum(1).unique().tolist() for gate in seen]
    assert all(len(count) == 1 for count in counts)
    assert {count[0] for count in counts} == {2.0, 3.0, 4.0}


def test_steps_repeat_with_torchs_seed(llava):
    batch, losses = make_batch(labels=True), []
    budgetprune.prune(llava, "adaptive", keep=5, train_keep=(2, 8))
    llava.train()
    for _ in range(2):
        torch.manual_seed(3)
        losses.append([llava(**batch).loss.item() for _ in range(4)])
    assert losses[0] == losses[1] and len(set(losses[0])) > 1


def test_gradient_checkpointing_keeps_the_gates(llava):
    batch, gradients = make_batch(labels=True), []
    budgetprune.prune(llava, "adaptive", keep=5)
    llava.train()
    for checkpointing in (False, True):
        if checkpointing:
            llava.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(3)
        llava.zero_grad()
        llava(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in llava.budget_pruner.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_padding_gets_no_attention_in_training(llava):
    batch = make_batch(labels=True)
    budgetprune.prune(llava, "adaptive", keep=TOKENS)
    gated = llava.train()(**batch).loss
    budgetprune.unprune(llava)
    torch.testing.assert_close(gated, llava(**batch).loss, atol=1e-5, rtol=1e-5)


def test_a_few_steps_lower_the_loss_on_one_batch(llava):
    """The loss of the tokens that are really kept falls, with only the controller learning."""
    batch = make_batch(text=(6, 6), labels=True)
    llava.requires_grad_(False)
    budgetprune.prune(llava, "adaptive", keep=3, tau=1.0)
    optimizer = torch.optim.Adam(llava.budget_pruner.parameters(), lr=1e-2)
    torch.manual_seed(0)

    def pruned_loss():
        llava.eval()
        with torch.no_grad():
            return llava(**batch).loss.item()

    first = pruned_loss()
    llava.train()
    for _ in range(40):
        optimizer.zero_grad()
        llava.train()(**batch).loss.backward()
        optimizer.step()
    assert pruned_loss() < first - 0.05


def test_gates_with_attention_dropout_are_refused(llava):
    for block in llava.model.language_model.layers:
        block.self_attn.attention_dropout = 0.1
    budgetprune.prune(llava, "adaptive", keep=3)
    with pytest.raises(ValueError, match="attention dropout must be 0 where gates act inside attention, got 0.1"):
        llava.train()(**make_batch(labels=True))


def test_the_image_token_count_stays_whole_in_training(llava):
    batch = make_batch(labels=True)
    budgetprune.prune(llava, "adaptive", keep=3)
    out = llava.train()(**batch)
    assert out.logits.shape[1] == batch["input_ids"].shape[1]
    assert (batch["input_ids"] == IMAGE_TOKEN).sum() == 2 * TOKENS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_controller_of_a_half_precision_model_trains_in_float32(llava, dtype):
    batch = make_batch(labels=True)
    llava.to(dtype).requires_grad_(False)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    budgetprune.prune(llava, "adaptive", keep=5)
    optimizer = torch.optim.AdamW(llava.budget_pruner.parameters(), 1e-3)
    for _ in range(3):
        llava.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in llava.budget_pruner.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all(), name
