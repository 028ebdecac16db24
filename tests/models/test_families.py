"""The same questions to every family of models, with every vision-side method."""

import copy

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO, make_inputs, make_model, make_video
from hand_built import hand_built_logits

import budgetprune
from budgetprune.models.base import family_of
from budgetprune.selectors.base import find

VISION = [name for name in budgetprune.methods() if find(name).place == "vision" and name != "none"]
SOME = ["uniform", "prumerge", "adaptive"]
BEFORE_PROJECTOR = ("llava", "llava_siglip")  # there test_prune.py merges by hand
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def whole(name):
    return make_model(name)


@pytest.fixture
def model(whole):
    yield whole
    assert "budget_pruner" not in whole._modules


def state_of(model):
    """Everything that a pruner could leave behind, of every module."""
    return [(name, sorted(k for k in module.__dict__ if k != "training"), id(getattr(module, "config", None)),
             len(module._forward_pre_hooks), len(module._forward_hooks)) for name, module in model.named_modules()]


@torch.no_grad()
@pytest.mark.parametrize("keep, images, padding", [(3, (1, 1), "left"), ([2, 4, 1], (2, 1), "right"),
                                                   ([1, 3, 2], (1, 2), "left")], ids=str)
@pytest.mark.parametrize("method", VISION)
def test_a_pruned_forward_equals_what_is_put_together_by_hand(name, model, method, keep, images, padding):
    inputs, lengths = make_inputs(name, model, images=images, padding=padding)
    with budgetprune.prune(model, method, keep=keep) as pruning:
        logits, plan, valid = model(**inputs).logits, pruning.plan, pruning.valid
        positions = pruning.selector.positions
        found = ((inputs["input_ids"].gather(1, pruning.index) == IMAGE) & valid).sum()
    counts = [keep] * sum(images) if isinstance(keep, int) else keep
    assert plan.counts() == counts and int(found) == sum(counts)
    if name in BEFORE_PROJECTOR and plan.merge is not None:
        pytest.skip("merged before the projector: see test_prune.py")
    expected = hand_built_logits(name, model, inputs, lengths, plan, positions)
    for row, exists, want in zip(logits, valid, expected, strict=True):
        torch.testing.assert_close(row[exists], want, atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keeping_everything_is_bit_equal_to_the_stock_model(name, attention):
    model = make_model(name, attention)
    inputs, _ = make_inputs(name, model)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    for method in VISION:
        with budgetprune.prune(model, method, keep=10_000):
            assert torch.equal(model(**inputs).logits, logits), method
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens), method


@torch.no_grad()
def test_unprune_restores_every_bit_and_leaves_nothing(name, model):
    inputs, _ = make_inputs(name, model)
    logits = model(**inputs).logits
    before = state_of(model)
    for method in VISION:
        budgetprune.prune(model, method, keep=3)
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        budgetprune.unprune(model)
        assert state_of(model) == before, method
        assert torch.equal(model(**inputs).logits, logits), method


@pytest.mark.parametrize("method", SOME)
def test_loss_and_gradients_reach_the_tower(name, model, method):
    inputs, _ = make_inputs(name, model, labels=True)
    tower = family_of(model).tower_attention(model, 0)
    with budgetprune.prune(model, method, keep=[2, 3]):
        loss = model(**inputs).loss
        loss.backward()
    gradients = [p.grad for p in tower.parameters() if p.grad is not None]
    model.zero_grad()
    assert loss.isfinite() and any(g.abs().max() > 0 for g in gradients)


def step_by_step(model, inputs, steps):
    """Greedy decoding without any cache: the pruned forward over image and text, again for every token."""
    inputs = dict(inputs)
    for _ in range(steps):
        logits = model(**inputs, use_cache=False).logits[:, -1]
        logits[:, [IMAGE, VIDEO]] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax(-1, keepdim=True)], 1)
        for field, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 1)):
            if field in inputs:
                more = torch.full_like(inputs[field][:, :1], fill)
                inputs[field] = torch.cat([inputs[field], more], 1)
    return inputs["input_ids"]


@torch.no_grad()
@pytest.mark.parametrize("images", [(1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize("method", SOME)
def test_greedy_generation_equals_forward_step_by_step(name, model, method, images):
    inputs, _ = make_inputs(name, model, images=images)
    with budgetprune.prune(model, method, keep=[1, 3, 2][: sum(images)]):
        tokens = model.generate(**inputs, **GREEDY)
        assert torch.equal(tokens, step_by_step(model, inputs, 5))
        static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, tokens)
    assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@torch.no_grad()
@pytest.mark.parametrize("method", SOME)
def test_beams_and_several_sequences_say_what_a_forward_says(name, model, method):
    inputs, _ = make_inputs(name, model, images=(2, 1))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
               "length_penalty": 0.0, "suppress_tokens": [IMAGE, VIDEO]}
    with budgetprune.prune(model, method, keep=[1, 3, 2]):
        out = model.generate(**inputs, **options, num_beams=3, num_return_sequences=2)
        assert torch.equal(out.sequences[:, :-4], inputs["input_ids"].repeat_interleave(2, 0))
        for beam in range(2):
            longer = dict(inputs, input_ids=out.sequences[beam::2])
            for field, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 1)):
                if field in inputs:
                    more = torch.full_like(inputs[field][:, :4], fill)
                    longer[field] = torch.cat([inputs[field], more], 1)
            logits = model(**longer).logits[:, -5:-1]
            likelihood = logits.log_softmax(-1).gather(2, longer["input_ids"][:, -4:, None]).sum((1, 2))
            torch.testing.assert_close(out.sequences_scores[beam::2], likelihood, atol=1e-3, rtol=1e-3)
        torch.manual_seed(5)
        drawn = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3)
        assert drawn.shape == (6, inputs["input_ids"].shape[1] + 4)


@torch.no_grad()
def test_a_batch_says_what_its_samples_say_alone(name, model):
    inputs, lengths = make_inputs(name, model, words=(6, 2))
    with budgetprune.prune(model, "prumerge", keep=[3, 2]) as pruning:
        together = model.generate(**inputs, **GREEDY)
        for row, keep in enumerate((3, 2)):
            pruning.set_keep(keep)
            exists = inputs["attention_mask"][row].bool()
            alone = {k: v[row:row + 1, exists] for k, v in inputs.items()
                     if v.shape == inputs["input_ids"].shape}
            alone |= one_image(name, inputs, row)
            assert model.generate(**alone, **GREEDY)[0, -5:].tolist() == together[row, -5:].tolist()


def one_image(name, inputs, row):
    """The encoder's arguments of image `row` alone."""
    if name.startswith("qwen"):
        sizes = inputs["image_grid_thw"].prod(1).tolist()
        return {"pixel_values": inputs["pixel_values"].split(sizes)[row],
                "image_grid_thw": inputs["image_grid_thw"][row:row + 1]}
    if name == "internvl":
        return {"pixel_values": inputs["pixel_values"][:2] if row == 0 else inputs["pixel_values"][2:]}
    return {k: inputs[k][row:row + 1] for k in ("pixel_values", "image_sizes") if k in inputs}


@torch.no_grad()
def test_half_precision_and_deep_copies_work(name, model):
    half = copy.deepcopy(model).bfloat16()
    inputs, _ = make_inputs(name, model)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for method in VISION:
        with budgetprune.prune(half, method, keep=[3, 2]):
            assert half(**inputs).logits.isfinite().all()
            twin = copy.deepcopy(half)
        assert torch.equal(twin.generate(**inputs, **GREEDY)[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@torch.no_grad()
def test_text_only_calls_pass_untouched(name, model):
    ids = torch.tensor([[1, 5, 6, 7]])
    extra = {"token_type_ids": torch.zeros_like(ids)} if name == "paligemma" else {}
    expected = model(input_ids=ids, **extra).logits
    for method in SOME:
        with budgetprune.prune(model, method, keep=4):
            assert torch.equal(model(input_ids=ids, **extra).logits, expected)


@torch.no_grad()
def test_a_prompt_without_room_for_its_images_is_refused(name, model):
    inputs, _ = make_inputs(name, model)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 7)
    inputs["input_ids"][:, -1] = IMAGE
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    with budgetprune.prune(model, "uniform", keep=4), pytest.raises(ValueError, match="input_ids must hold .* got 2"):
        model(**inputs)


def test_a_trained_pruner_learns_in_every_causal_family(name, model):
    inputs, _ = make_inputs(name, model, labels=True)
    with budgetprune.prune(model, "adaptive", keep=3, train_keep=(1, 3)) as pruning:
        model.train()
        if family_of(model).prefix_lm:
            with pytest.raises(ValueError, match="adaptive cannot be trained in PaliGemma.*gates act inside causal"):
                model(**inputs)
        else:
            model(**inputs).loss.backward()
            head = pruning.selector.controller.head[0].weight
            assert head.grad is not None and head.grad.abs().max() > 0
        model.eval()
    model.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("method", VISION)
def test_a_video_beside_an_image_is_pruned_by_its_own_count(name, model, method):
    if "video" not in family_of(model).media:
        pytest.skip("no videos in this family")
    inputs, image, video = make_video(name, model)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with budgetprune.prune(model, method, keep=10_000):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    with budgetprune.prune(model, method, keep=[3, 5]) as pruning:
        pruned, plan = model(**inputs).logits, pruning.plan
        assert plan.counts() == [3, 5]
        beams = model.generate(**inputs, **GREEDY, num_beams=2)
        assert beams.shape[1] == inputs["input_ids"].shape[1] + 5
    (expected,) = hand_built_logits(name, model, inputs, image, plan, find(method).positions, video)
    torch.testing.assert_close(pruned[0], expected, atol=2e-4, rtol=2e-4)
