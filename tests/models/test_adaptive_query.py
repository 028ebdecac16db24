"""A trained pruner that hears the question, in models."""

import pytest
import torch
from families import IMAGE, make_inputs, make_model
from tiny import IMAGE_TOKEN, make_batch

import budgetprune


@pytest.fixture
def pruned(llava):
    torch.manual_seed(0)
    with budgetprune.prune(llava, "adaptive_query", keep=4) as pruning:
        with torch.no_grad():
            pruning.selector.controller.gain.fill_(20.0)
        yield pruning


@torch.no_grad()
def test_another_question_keeps_other_tokens_of_the_same_image(pruned):
    batch = make_batch(text=(5, 5))
    batch["pixel_values"][1] = batch["pixel_values"][0]
    pruned.model(**batch)
    assert pruned.plan.kept[0].tolist() != pruned.plan.kept[1].tolist()
    batch["input_ids"][1] = batch["input_ids"][0]
    pruned.model(**batch)
    assert pruned.plan.kept[0].tolist() == pruned.plan.kept[1].tolist()


@torch.no_grad()
def test_the_answer_is_no_part_of_the_question(pruned):
    batch = make_batch(text=(5, 5))
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][:, -2:] = batch["input_ids"][:, -2:]
    pruned.model(**batch)
    kept = pruned.plan.kept
    batch["input_ids"][:, -2:] = batch["labels"][:, -2:] = torch.tensor([[7, 9], [3, 4]])
    pruned.model(**batch)
    assert torch.equal(pruned.plan.kept, kept)
    asked = {name: value[:, :-2] if value.shape == batch["input_ids"].shape else value
             for name, value in batch.items() if name != "labels"}
    pruned.model(**asked)
    assert torch.equal(pruned.plan.kept, kept), "at inference the answer is not there yet"


def test_the_loss_reaches_question_and_patches(llava):
    torch.manual_seed(0)
    with budgetprune.prune(llava, "adaptive_query", keep=4, train_keep=(2, 6)) as pruning:
        batch = make_batch(text=(5, 5), labels=True)
        batch["labels"][:, :-2] = -100
        llava.train()(**batch).loss.backward()
        llava.eval()
        gradients = {name: p.grad for name, p in pruning.selector.controller.named_parameters()}
    del gradients["head.2.bias"]  # it shifts all logits alike, and chooses nothing
    assert all(g is not None and g.abs().max() > 1e-5 for g in gradients.values())
    llava.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "paligemma"])
def test_several_images_of_a_prompt_hear_the_same_question(name):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, images=(2, 1))
    torch.manual_seed(0)
    with budgetprune.prune(model, "adaptive_query", keep=[1, 2, 3]) as pruning:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE])
        assert pruning.plan.counts() == [1, 2, 3] and out.shape[1] == inputs["input_ids"].shape[1] + 3


def test_saved_weights_are_those_of_question_and_patches(llava, tmp_path):
    torch.manual_seed(0)
    with budgetprune.prune(llava, "adaptive_query", keep=4, query_dim=7) as pruning:
        pruning.save_pretrained(tmp_path)
        with torch.no_grad():
            logits = llava(**make_batch()).logits
    with budgetprune.from_pretrained(llava, tmp_path) as pruning, torch.no_grad():
        assert pruning.selector.controller.query.out_features == 7
        assert torch.equal(llava(**make_batch()).logits, logits)


@torch.no_grad()
def test_a_prompt_of_nothing_but_the_image_is_pruned_by_patches_alone(pruned):
    ids = torch.full((1, 16), IMAGE_TOKEN)
    pruned.model(input_ids=ids, pixel_values=make_batch()["pixel_values"][:1])
    assert pruned.plan.counts() == [4]
