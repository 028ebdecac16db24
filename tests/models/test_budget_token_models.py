"""fusion="encoder" in models: the tower sees the budget, and what is put together by hand from its features is said."""

import copy

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO, make_inputs, make_model, make_video
from hand_built import hand_built_logits
from tiny import IMAGE_TOKEN, PAD, TOKENS, make_batch, make_llava

import budgetprune
from budgetprune.models.base import family_of
from budgetprune.models.budget_rows import add_hooks
from budgetprune.pruners.tower_hooks import Appended, appended

NAMES = [name for name in FAMILIES if name != "internvl"]
BEFORE = ("llava", "llava_siglip")
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
METHODS = ["adaptive", "adaptive_query"]


def pruned(model, method="adaptive", keep=3, **options):
    torch.manual_seed(0)
    return budgetprune.prune(model, method, keep=keep, fusion="encoder", **options)


def tokens_of(selector):
    """Lets a test see the budgets and the tokens that the next calls give the tower."""
    seen, make = [], selector.budget_token
    selector.budget_token = lambda budget, tower: seen.append((budget, make(budget, tower))) or seen[-1][1]
    return seen


def state_of(model):
    return [(name, sorted(k for k in module.__dict__ if k != "training"), id(getattr(module, "config", None)),
             len(module._forward_pre_hooks), len(module._forward_hooks)) for name, module in model.named_modules()]


@torch.no_grad()
@pytest.mark.parametrize("position", ["own", "last"])
@pytest.mark.parametrize("name", NAMES)
def test_a_forward_equals_what_is_put_together_from_the_features_that_saw_the_budgets(name, position):
    model = make_model(name)
    inputs, lengths = make_inputs(name, model, images=(2, 1))
    stock, before = model(**inputs).logits, state_of(model)
    with pruned(model, keep=[2, 4, 1], token_position=position) as pruning:
        seen = tokens_of(pruning.selector)
        logits, plan, valid = model(**inputs).logits, pruning.plan, pruning.valid
    assert plan.counts() == [2, 4, 1]
    assert torch.equal(model(**inputs).logits, stock) and state_of(model) == before
    (budget, call), = seen
    images = family_of(model).images(model, "image", inputs)
    rows = [k / n for k, (n, rows) in zip(plan.counts(), images, strict=True) for _ in range(rows)]
    torch.testing.assert_close(budget, torch.tensor(rows))
    handles = add_hooks(model, family_of(model))
    with appended(Appended(call.tokens, call.at)):
        expected = hand_built_logits(name, model, inputs, lengths, plan, "original")
    for handle in handles:
        handle.remove()
    for row, exists, want in zip(logits, valid, expected, strict=True):
        torch.testing.assert_close(row[exists], want, atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_are_pruned_and_answered_as_each_alone(name, method):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, words=(4, 4))
    with pruned(model, method, keep=[2, 3]) as pruning:
        whole, plan, valid = model(**inputs).logits, pruning.plan, pruning.valid
        said = model.generate(**inputs, **GREEDY)[:, -3:]
        for row in range(2):
            one = {key: value[row:row + 1] for key, value in inputs.items()}
            if name.startswith("qwen"):
                sizes = inputs["image_grid_thw"].prod(1).tolist()
                one["pixel_values"] = inputs["pixel_values"].split(sizes)[row]
            pruning.set_keep([2, 3][row])
            there = valid[row].nonzero()[:, 0]
            logits = model(**one).logits[0][pruning.valid[0]]
            torch.testing.assert_close(logits, whole[row][there], atol=2e-4, rtol=2e-4)
            kept = plan.kept[row][plan.kept[row] >= 0]
            assert pruning.plan.kept[0].tolist() == kept.tolist()
            assert torch.equal(model.generate(**one, **GREEDY)[0, -3:], said[row])
            pruning.set_keep([2, 3])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_budget_changes_the_logits_by_the_features_alone(name):
    """Conditioning "none" and a fixed choice: only what the tower makes of the budget is left."""
    model = make_model(name)
    inputs, _ = make_inputs(name, model, images=(1,), words=(4,))
    with pruned(model, conditioning="none") as pruning:
        controller, states = pruning.selector.controller, []
        logits = controller.logits
        controller.logits = lambda features, budget, state: states.append((features, state)) or \
            logits(features, budget, state)
        for keep in (1, 3):
            pruning.set_keep(keep)
            model(**inputs)
        (features, state), (others, other) = states
        assert features.shape == others.shape and not torch.allclose(features, others, atol=1e-4)
        assert not torch.allclose(state, other, atol=1e-4)
        same = torch.tensor([0.5])
        assert not torch.allclose(logits(features, same, state), logits(others, same, state), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_budget_token_is_never_kept(name):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, images=(2, 1))
    patches = [n for n, _ in family_of(model).images(model, "image", inputs)]
    with pruned(model, keep=10_000) as pruning:
        model(**inputs)
        assert pruning.plan.counts() == patches
        pruning.set_keep([n - 1 for n in patches])
        model(**inputs)
        for kept, n in zip(pruning.plan.kept, patches):
            assert kept.max() < n and len(kept[kept >= 0]) == n - 1


@pytest.mark.parametrize("gate", ["attention", "features", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_reaches_embedding_and_position_through_the_frozen_tower(name, gate):
    if name == "paligemma" and gate == "attention":
        pytest.skip("gates act inside causal attention")
    model = make_model(name)
    inputs, _ = make_inputs(name, model, labels=True)
    model.requires_grad_(False)
    pruning = pruned(model, train_keep=(2, 4), gate=gate)
    seen = tokens_of(pruning.selector)
    out = model.train()(**inputs)
    out.loss.backward()
    images = family_of(model).images(model, "image", inputs)
    counts = {round(float(b) * n) for b, n in zip(seen[0][0], [n for n, rows in images for _ in range(rows)])}
    assert len(counts) == 1 and counts <= {2, 3, 4}, "one count is drawn for all, before the tower runs"
    for module in (pruning.selector.token, pruning.selector.controller.budget):
        for key, parameter in module.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key
    assert not any(p.grad is not None for key, p in model.named_parameters() if not key.startswith("budget_pruner"))


@pytest.mark.parametrize("use_cls", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gates_equal_the_gathered_sequence_with_cls_or_without(attention, use_cls):
    model, batch = make_llava(attention), make_batch(labels=True)
    before = batch["input_ids"].roll(1, 1)
    batch["labels"] = batch["labels"].masked_fill((before == IMAGE_TOKEN) | (before == PAD), -100)
    pruning = pruned(model, keep=5, use_cls=use_cls)
    model.train().budget_pruner.set_noise(False)
    loss = model(**batch).loss.detach()
    with torch.no_grad():
        out = model.eval()(**batch)
    assert out.logits.shape[1] == int(pruning.valid.shape[1])
    image_tokens = (batch["input_ids"].gather(1, pruning.index) == IMAGE_TOKEN) & pruning.valid
    assert image_tokens.sum(1).tolist() == [5 + use_cls] * 2
    torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-5)


def test_checkpointed_towers_and_decoders_give_the_same_gradients():
    for name in ("llava", "qwen2_5_vl"):
        gradients = []
        for checkpointing in (False, True):
            model = make_model(name)
            inputs, _ = make_inputs(name, model, labels=True)
            model.requires_grad_(False)
            pruning = pruned(model)
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            torch.manual_seed(3)
            model.train()(**inputs).loss.backward()
            gradients.append([p.grad for p in pruning.selector.token.parameters()])
        for plain, again in zip(*gradients, strict=True):
            torch.testing.assert_close(again, plain)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_videos_beside_images_get_their_own_budgets(name):
    model = make_model(name)
    inputs, (image,), _ = make_video(name, model)
    with pruned(model, keep=[3, 0.5]) as pruning:
        seen = tokens_of(pruning.selector)
        out = model.generate(**inputs, **GREEDY)
        (first, _), (second, _) = seen
        video = family_of(model).images(model, "video", inputs)[0][0]
        assert pruning.plan.counts() == [3, round(video / 2)] and len(second) == 2
        torch.testing.assert_close(second, torch.full((2,), round(video / 2) / video))
        assert out.shape[1] == inputs["input_ids"].shape[1] + 3


@torch.no_grad()
def test_fastv_behind_it_prunes_what_is_left():
    model, batch = make_llava(), make_batch()
    stock = model(**batch).logits
    with budgetprune.prune(model, "adaptive+fastv", keep=([6, 8], [2, 3]), fusion="encoder") as pruning:
        model(**batch)
        assert pruning.plan.counts() == [6, 8] and pruning.stages[-1].counts() == [2, 3]
        assert model.generate(**batch, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2
    assert torch.equal(model(**batch).logits, stock)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_a_saved_pruner_brings_its_token_along(name, method, tmp_path):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    with pruned(model, method, conditioning="dot", token_position="own") as pruning:
        for parameter in pruning.selector.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        logits = model(**inputs).logits
        pruning.save_pretrained(tmp_path)
    with budgetprune.from_pretrained(model, tmp_path) as pruning:
        options = pruning.selector.options()
        assert (options["fusion"], options["conditioning"]) == ("encoder", "dot")
        assert torch.equal(model(**inputs).logits, logits)


def test_lora_and_the_token_live_in_one_adapter(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file

    batch, base = make_batch(labels=True), make_llava()
    pruned(base)
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["budget_pruner"])
    model = get_peft_model(base, lora)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()(**batch).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("token.position" in name for name in moved) and any("lora_" in name for name in moved)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path)
    assert any("token.embedding" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    fresh = make_llava()
    pruned(fresh)
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(fresh, tmp_path).eval()(**batch).logits, expected)


@torch.no_grad()
def test_a_copy_of_the_model_has_its_own_token():
    model, batch = make_llava(), make_batch()
    pruned(model)
    other = copy.deepcopy(model)
    other.budget_pruner.selector.token.position.add_(2.0)
    expected = model(**batch).logits
    assert not torch.equal(other(**batch).logits, expected)
    budgetprune.unprune(other)
    assert torch.equal(model(**batch).logits, expected)


@torch.no_grad()
def test_other_layers_of_the_tower_may_be_projected():
    from transformers import LlavaForConditionalGeneration

    config = copy.deepcopy(make_llava().config)
    config.vision_feature_layer = [-2, -1]
    torch.manual_seed(0)
    model, batch = LlavaForConditionalGeneration(config).eval(), make_batch()
    with pruned(model) as pruning:
        model(**batch)
        assert pruning.plan.counts() == [3, 3]


@torch.no_grad()
def test_the_vision_side_exports_with_its_token():
    from budgetprune.models.export import export_vision

    model, batch = make_llava(), make_batch()
    with pruned(model, keep=4) as pruning:
        program = export_vision(model, batch["pixel_values"])
        model(**batch)
        features, kept = program.module()(batch["pixel_values"])
        assert torch.equal(kept, pruning.plan.kept) and features.shape == (2, 4, 64)


@torch.no_grad()
@pytest.mark.parametrize("name, part", [("llava", "vision_tower"), ("qwen3_vl", "visual")])
def test_a_compiled_tower_gives_the_same(name, part):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    with pruned(model, keep=[2, 3]) as pruning:
        expected, kept = model(**inputs).logits, pruning.plan.kept
        torch.compiler.reset()
        getattr(model.model, part).compile(backend="eager")
        logits = model(**inputs).logits
        assert torch.equal(pruning.plan.kept, kept)
        torch.testing.assert_close(logits, expected)
    torch.compiler.reset()


def test_the_cost_of_a_selection_counts_the_token_in_the_tower():
    flops = {}
    for fusion in ("post", "encoder"):
        with budgetprune.prune(make_llava(), "adaptive", keep=3, fusion=fusion) as pruning:
            selector = pruning.selector
            flops[fusion] = selector.flops(TOKENS, 32, 3)
    width, mlp, layers, row = 32, 64, 3, TOKENS + 1
    token = 2 * layers * (4 * width * width + 2 * width * mlp + 2 * width * (2 * row + 1))
    # The embedding is before the tower now, and its place behind it is taken by one matrix.
    assert flops["encoder"] - flops["post"] == token + 2 * width * width


def test_a_model_that_cannot_take_it_is_refused_and_left_alone():
    model = make_model("internvl")
    with pytest.raises(ValueError, match="fusion must be 'post' in InternVLForConditionalGeneration: vision_tower must"
                                         " be one of clip_vision_model, .*, got internvl_vision"):
        pruned(model)
    assert "budget_pruner" not in model._modules


def test_a_budget_for_another_number_of_images_is_refused():
    model = make_llava()
    with pruned(model, keep=[3, 4, 5]), pytest.raises(ValueError, match="keep must have 2 entries, one per image"):
        model(**make_batch())
    assert model(**make_batch()).logits.isfinite().all()
