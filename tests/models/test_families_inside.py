"""FastV, and the methods with several stages, in every family: equal to the full-length model that hides columns."""

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO, make_inputs, make_model, make_video

import budgetprune
from budgetprune.models.base import family_of
from budgetprune.selectors.base import find

INSIDE = [name for name in budgetprune.methods() if find(name).place == "llm"]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


def stay_of(inputs, plan):
    """[B, L] bool: columns of the prompt that a plan over each sample's image tokens leaves."""
    is_image = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    stay = ~is_image & inputs["attention_mask"].bool()
    for row, kept in enumerate(plan.kept):
        columns = is_image[row].nonzero().flatten()
        stay[row, columns[kept[kept >= 0].long()]] = True
    return stay


def masked_logits(model, inputs, stages):
    """The stock model, but from each stage's layer on nothing attends to the columns that do not stay.

    stages: {layer: [B, L] bool}.
    """
    def narrow(module, args, kwargs):
        stay = [left for layer, left in stages.items() if module.self_attn.layer_idx >= layer][-1]
        own, length, device = kwargs["attention_mask"], stay.shape[1], stay.device
        exists = inputs["attention_mask"].bool()
        if own is None:
            seen = torch.ones(length, length, dtype=torch.bool, device=device).tril() & exists[:, None]
            seen = seen[:, None]
        else:
            seen = own if own.dtype == torch.bool else own == 0
        seen = (seen & stay[:, None, None]) | torch.eye(length, dtype=torch.bool, device=device)
        mask = torch.zeros(seen.shape, dtype=args[0].dtype, device=device)
        return args, {**kwargs, "attention_mask": mask.masked_fill(~seen, torch.finfo(mask.dtype).min)}

    handles = [block.register_forward_pre_hook(narrow, with_kwargs=True)
               for block in family_of(model).decoder(model).layers[min(stages):]]
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def longer(inputs, tokens):
    """The prompt with `tokens` behind it."""
    new = tokens.shape[1] - inputs["input_ids"].shape[1]
    out = dict(inputs, input_ids=tokens)
    for field, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 1)):
        if field in inputs:
            out[field] = torch.cat([inputs[field], torch.full_like(inputs[field][:, :new], fill)], 1)
    return out


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("attention, padding", [("sdpa", "left"), ("eager", "right")])
def test_fastv_equals_the_model_that_hides_what_is_dropped(name, attention, padding, layer):
    model = make_model(name, attention)
    inputs, _ = make_inputs(name, model, images=(2, 1), padding=padding)
    with budgetprune.prune(model, "fastv", keep=[5, 3], layer=layer) as pruning:
        out = model(**inputs, use_cache=True)
        stay = stay_of(inputs, pruning.plan)
        assert pruning.plan.counts() == [5, 3]
    expected = masked_logits(model, inputs, {layer: stay})
    torch.testing.assert_close(out.logits[stay], expected[stay], atol=2e-4, rtol=2e-4)
    full, longest = stay.shape[1], int(stay.sum(1).max())
    lengths = [out.past_key_values.get_seq_length(i) for i in range(4)]
    assert lengths == [full] * layer + [longest] * (4 - layer)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_stage_hides_what_it_drops_and_what_was_dropped_before(name, padding):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, images=(2, 1), padding=padding)
    with budgetprune.prune(model, "pyramiddrop", keep=[5, 2]) as pruning:
        logits = model(**inputs, use_cache=False).logits
        layers = pruning.selector.layers(4)
        stages = {layer: stay_of(inputs, plan) for layer, plan in zip(layers, pruning.stages, strict=True)}
    stay = stages[layers[-1]]
    torch.testing.assert_close(logits[stay], masked_logits(model, inputs, stages)[stay], atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 3])
def test_generation_with_fastv_says_what_one_forward_says(name, layer):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    with budgetprune.prune(model, "fastv", keep=[2, 4], layer=layer) as pruning:
        tokens = model.generate(**inputs, **GREEDY)
        stay = stay_of(inputs, pruning.plan)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, tokens)
    stay = torch.cat([stay, torch.ones(2, 4, dtype=torch.bool)], 1)
    logits = masked_logits(model, longer(inputs, tokens[:, :-1]), {layer: stay})[:, -5:]
    logits[..., [IMAGE, VIDEO]] = -torch.inf
    assert torch.equal(logits.argmax(-1), tokens[:, -5:])


@torch.no_grad()
@pytest.mark.parametrize("method", INSIDE)
def test_methods_inside_generate_in_all_forms_and_keep_all_is_bit_equal(name, method):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, images=(2, 1))
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with budgetprune.prune(model, method, keep=10_000):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    with budgetprune.prune(model, method, keep=[4, 3]) as pruning:
        assert model(**inputs).logits.isfinite().all()
        assert pruning.plan.counts() == [4, 3]
        shape = (4, inputs["input_ids"].shape[1] + 5)
        assert model.generate(**inputs, **GREEDY, num_beams=2, num_return_sequences=2).shape == shape
        assert model.generate(**inputs, max_new_tokens=5, do_sample=True, num_return_sequences=2).shape == shape
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("method", INSIDE)
def test_gradients_pass_what_is_pruned_inside(name, method):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, labels=True)
    with budgetprune.prune(model, method, keep=[2, 3]):
        loss = model(**inputs).loss
        loss.backward()
    gradients = [p.grad for p in family_of(model).tower_attention(model, 0).parameters() if p.grad is not None]
    assert loss.isfinite() and any(g.abs().max() > 0 for g in gradients)


@torch.no_grad()
def test_fastv_ranks_image_and_video_together(name):
    model = make_model(name)
    if "video" not in family_of(model).media:
        pytest.skip("no videos in this family")
    inputs, _, _ = make_video(name, model)
    with budgetprune.prune(model, "fastv", keep=7, layer=1) as pruning:
        logits = model(**inputs, use_cache=False).logits
        stay = stay_of(inputs, pruning.plan)
    expected = masked_logits(model, inputs, {1: stay})
    torch.testing.assert_close(logits[stay], expected[stay], atol=2e-4, rtol=2e-4)
