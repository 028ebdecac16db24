"""Two methods in one model: the first chooses before the language model, the second among what is left inside it."""

import copy

import pytest
import torch
from test_stages import continued, longer, masked_logits, stays
from tiny import IMAGE_TOKEN, make_batch

import budgetprune
from budgetprune.selectors import build

BUDGETS = [(8, 3), ([12, 6], [3, 5]), (9, [2, 9]), (16, 4), (8, 8), (0.5, 0.25)]


def shrunk(batch, pruning):
    """The prompt that the language model gets, by the columns that the first method leaves."""
    if pruning.index is None:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = batch["input_ids"].gather(1, pruning.index).masked_fill(~pruning.valid, 0)
    return {"input_ids": ids, "attention_mask": pruning.valid.long()}


def alone(model, batch, method, keep):
    """(what the language model gets, as arguments) where the first method is by itself."""
    seen = {}
    with budgetprune.prune(model, method, keep=keep) as pruning:
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
        model(**batch, use_cache=False)
        handle.remove()
        return shrunk(batch, pruning), seen["inputs_embeds"]


class FromEmbeddings:
    """The model without its images: a full-length run over embeddings, in which layers may be kept from columns."""

    def __init__(self, model, embeddings):
        self.model, self.embeddings, self.head = self, embeddings, model.lm_head
        self.language_model = model.model.language_model

    def __call__(self, input_ids, attention_mask, use_cache=False):
        text = self.language_model.embed_tokens(input_ids[:, self.embeddings.shape[1]:])
        embeddings = torch.cat([self.embeddings, text], 1)
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
        out = self.language_model(inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=positions,
                            use_cache=False)
        return type("Out", (), {"logits": self.head(out.last_hidden_state)})


@torch.no_grad()
@pytest.mark.parametrize("keep", BUDGETS, ids=str)
@pytest.mark.parametrize("methods", ["uniform+fastv", "prumerge+fastv", "uniform+pyramiddrop"])
def test_the_decoder_drops_among_what_the_vision_side_left(llava, methods, keep):
    batch, first = make_batch(), methods.split("+")[0]
    prompt, embeddings = alone(llava, batch, first, keep[0])
    with budgetprune.prune(llava, methods, keep=keep) as pruning:
        logits = llava(**batch, use_cache=False).logits
        expected_first = budgetprune.TokenBudget(keep[0]).counts([16, 16])
        assert pruning.plan.counts() == expected_first
        counts = budgetprune.TokenBudget(keep[1]).counts(expected_first)
        if counts == expected_first:
            assert pruning.inside.plan is None
            stages = {}
        else:
            assert pruning.inside.plan.counts() == counts
            layers = pruning.inside.selector.layers(4)
            stages = dict(zip(layers, staged_of(pruning, prompt), strict=True))
    last = stages[max(stages)] if stages else prompt["attention_mask"].bool()
    expected = masked_logits(FromEmbeddings(llava, embeddings), prompt, stages)
    torch.testing.assert_close(logits[last], expected[last], atol=1e-4, rtol=1e-4)


def staged_of(pruning, prompt):
    return [stays(prompt, plan) for plan in pruning.stages]


@torch.no_grad()
def test_generation_of_two_methods_continues_what_a_full_forward_would_say(llava):
    batch = make_batch()
    prompt, embeddings = alone(llava, batch, "uniform", 8)
    with budgetprune.prune(llava, "uniform+fastv", keep=(8, [2, 5])) as pruning:
        tokens = llava.generate(**batch, max_new_tokens=6, do_sample=False, suppress_tokens=[IMAGE_TOKEN])
        beams = llava.generate(**batch, max_new_tokens=3, do_sample=False, num_beams=2, suppress_tokens=[IMAGE_TOKEN])
        static = llava.generate(**batch, max_new_tokens=6, do_sample=False, suppress_tokens=[IMAGE_TOKEN],
                                cache_implementation="static", disable_compile=True)
        stages = {2: staged_of(pruning, prompt)[0]}
    assert torch.equal(tokens[:, :-6], batch["input_ids"]) and torch.equal(tokens, static)
    assert beams.shape[1] == batch["input_ids"].shape[1] + 3
    ids = torch.cat([prompt["input_ids"], tokens[:, -6:-1]], 1)
    logits = masked_logits(FromEmbeddings(llava, embeddings), longer(prompt, ids, 5), continued(stages, 5))
    logits[..., IMAGE_TOKEN] = -torch.inf
    assert torch.equal(logits[:, -6:].argmax(-1), tokens[:, -6:])


@torch.no_grad()
def test_keeping_everything_in_both_is_bit_equal_to_the_unpruned_model(llava):
    batch = make_batch()
    expected = llava(**batch).logits
    with budgetprune.prune(llava, "uniform+fastv", keep=(16, 16)) as pruning:
        assert torch.equal(llava(**batch).logits, expected)
        pruning.set_keep((8, 2))
        assert not torch.equal(llava(**batch).logits[:, -1], expected[:, -1])
        assert pruning.inside.plan.counts() == [2, 2]
    assert torch.equal(llava(**batch).logits, expected)
    assert "budget_pruner" not in llava._modules


@torch.no_grad()
def test_a_saved_pair_prunes_the_same(llava, tmp_path):
    batch = make_batch()
    with budgetprune.prune(llava, (build("uniform"), build("fastv", layer=3)), keep=(9, 4)) as pruning:
        expected = llava(**batch).logits
        pruning.save_pretrained(tmp_path)
    with budgetprune.from_pretrained(llava, tmp_path) as pruning:
        assert pruning.inside.selector == build("fastv", layer=3)
        assert torch.equal(llava(**batch).logits, expected)
    with budgetprune.from_pretrained(llava, tmp_path, keep=(5, 2)) as pruning:
        llava(**batch)
        assert (pruning.plan.counts(), pruning.inside.plan.counts()) == ([5, 5], [2, 2])


@torch.no_grad()
def test_a_copy_of_a_model_with_two_methods_prunes_on_its_own(llava):
    batch = make_batch()
    budgetprune.prune(llava, "uniform+fastv", keep=(9, 4))
    twin = copy.deepcopy(llava)
    budgetprune.unprune(llava)
    twin(**batch)
    assert twin.budget_pruner.inside.plan.counts() == [4, 4]


def test_in_training_gates_act_alone_and_in_inference_both(llava):
    batch = make_batch(labels=True)
    with budgetprune.prune(llava, "adaptive+fastv", keep=(9, 4), train_keep=(3, 9)) as pruning:
        llava.train()
        llava(**batch).loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in llava.budget_pruner.parameters())
        assert pruning.inside.plan is None
        llava.eval()
        with torch.no_grad():
            llava(**batch)
        assert pruning.inside.plan.counts() == [4, 4]


@pytest.mark.parametrize("arguments, match", [
    ({"method": "fastv+uniform", "keep": (8, 4)}, "method must be one name, or two.*got fastv.uniform"),
    ({"method": "uniform+random", "keep": (8, 4)}, "method must be one name, or two"),
    ({"method": "uniform+random+fastv", "keep": (8, 4)}, "method must be one name, or two"),
    ({"method": "none+fastv", "keep": (8, 4)}, "method must be one name, or two"),
    ({"method": "uniform+fastv", "keep": 8}, "keep must be a pair for two methods, one budget each, got 8"),
    ({"method": "uniform+fastv", "keep": (8, None)}, "keep must be given: fastv"),
    ({"method": "uniform+fastv", "keep": (8, 4), "colour": 1}, "colour must be an option of one method"),
    ({"method": "uniform+slowv", "keep": (8, 4)}, "unknown method 'slowv'"),
])
def test_two_methods_that_do_not_go_together_are_refused(llava, arguments, match):
    with pytest.raises(ValueError, match=match):
        budgetprune.prune(llava, **arguments)
    assert "budget_pruner" not in llava._modules
