"""Every method in a LLaVA: equal to a hand-built reference, bit-equal when all stays, and nothing left behind."""

import copy

import pytest
import torch
from tiny import IMAGE_TOKEN, TOKENS, make_batch, make_llava, state_of

import budgetprune
from budgetprune.models.attention import NAME
from budgetprune.selectors.base import find

METHODS = budgetprune.methods()
VISION = [name for name in METHODS if name != "none" and find(name).place == "vision"]


def hand_built(model, batch, plan, positions):
    """Logits of every sample from inputs_embeds put together by hand, one sample at a time, without padding."""
    features = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    out = []
    for b, count in enumerate(plan.counts()):
        ids = batch["input_ids"][b][batch["attention_mask"][b].bool()]
        kept = plan.kept[b][plan.kept[b] >= 0].long()
        tokens = features[b, kept] if plan.merge is None else plan.merge.dense(TOKENS)[b, :count] @ features[b]
        image = model.model.multi_modal_projector(tokens)
        where = (ids == IMAGE_TOKEN).nonzero().flatten()
        first, last = int(where[0]), int(where[-1])
        text = model.get_input_embeddings()(ids)
        embeds = torch.cat([text[:first], image, text[last + 1:]])[None]
        if positions == "original":
            where = torch.cat([torch.arange(first), first + kept, torch.arange(last + 1, len(ids))])[None]
        else:
            where = torch.arange(embeds.shape[1])[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        hidden = model.model.language_model(inputs_embeds=embeds, position_ids=where, attention_mask=mask)
        out.append(model.lm_head(hidden.last_hidden_state)[0])
    return out


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("keep", [6, 1, [3, 9], 0.5], ids=str)
@pytest.mark.parametrize("method", VISION)
def test_pruned_forward_equals_a_hand_built_reference(llava, method, keep, padding):
    batch = make_batch(padding=padding)
    with budgetprune.prune(llava, method, keep=keep) as pruning:
        logits = llava(**batch).logits
        plan, valid, positions = pruning.plan, pruning.valid, pruning.selector.positions
    for row, exists, expected in zip(logits, valid, hand_built(llava, batch, plan, positions), strict=True):
        torch.testing.assert_close(row[exists], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_is_bit_equal_to_the_unpruned_model(method, attention):
    model, batch = make_llava(attention), make_batch()
    logits = model(**batch).logits
    tokens = model.generate(**batch, max_new_tokens=5, do_sample=False)
    with budgetprune.prune(model, method, keep=TOKENS):
        assert torch.equal(model(**batch).logits, logits)
        assert torch.equal(model.generate(**batch, max_new_tokens=5, do_sample=False), tokens)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_unprune_restores_every_bit_and_leaves_nothing(llava, method):
    batch = make_batch()
    logits = llava(**batch).logits
    before = state_of(llava)  # after a first call: transformers itself leaves an attribute on its models
    budgetprune.prune(llava, method, keep=4)
    llava(**batch)
    llava.generate(**batch, max_new_tokens=2, do_sample=False)
    assert budgetprune.unprune(llava) is llava
    assert state_of(llava) == before
    assert torch.equal(llava(**batch).logits, logits)
    assert not any(getattr(m, "config", None) is not None and m.config._attn_implementation == NAME
                   for m in llava.modules() if hasattr(m, "config"))


def test_leaving_the_with_block_by_an_error_restores_the_model(llava):
    before = state_of(llava)
    with pytest.raises(KeyError, match="from inside"), budgetprune.prune(llava, "fastv", keep=4):
        raise KeyError("from inside")
    assert state_of(llava) == before


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_flow_to_tower_projector_and_decoder(llava, method):
    batch = make_batch(labels=True)
    with budgetprune.prune(llava, method, keep=5):
        loss = llava(**batch).loss
        loss.backward()
    assert loss.isfinite()
    for weight in (llava.model.vision_tower.encoder.layers[0].self_attn.v_proj.weight,
                   llava.model.multi_modal_projector.linear_1.weight,
                   llava.model.language_model.layers[-1].mlp.up_proj.weight):
        assert weight.grad.isfinite().all() and weight.grad.abs().max() > 0


@torch.no_grad()
def test_logits_can_be_mapped_back_to_the_callers_columns(llava):
    batch = make_batch()
    with budgetprune.prune(llava, "uniform", keep=[3, 9]) as pruning:
        llava(**batch)
        found = batch["input_ids"].gather(1, pruning.index)
        images = ((found == IMAGE_TOKEN) & pruning.valid).sum(1).tolist()
        text = [(row[ok & (row != IMAGE_TOKEN)]).tolist() for row, ok in zip(found, pruning.valid)]
    assert images == [3, 9]
    assert text == [[t for t, m in zip(row.tolist(), mask) if m and t != IMAGE_TOKEN]
                    for row, mask in zip(batch["input_ids"], batch["attention_mask"].bool())]


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_cls_is_always_kept_where_the_model_uses_it(strategy):
    model = make_llava(strategy=strategy)
    batch = make_batch(tokens=TOKENS + (strategy == "full"))
    with budgetprune.prune(model, "uniform", keep=4) as pruning:
        model(**batch)
        images = (batch["input_ids"].gather(1, pruning.index) == IMAGE_TOKEN) & pruning.valid
    assert images.sum(1).tolist() == [4 + (strategy == "full")] * 2


@torch.no_grad()
@pytest.mark.parametrize("keep", [3, TOKENS])
def test_use_cls_puts_a_projected_cls_before_the_patches(llava, keep):
    batch, seen = make_batch(), []
    with budgetprune.prune(llava, "adaptive", keep=keep, use_cls=True) as pruning:
        spy = llava.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        llava(**batch)
        spy.remove()
        images = (batch["input_ids"].gather(1, pruning.index) == IMAGE_TOKEN) & pruning.valid
    tower = llava.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
    assert images.sum(1).tolist() == [keep + 1] * 2
    torch.testing.assert_close(seen[0].reshape(2, keep + 1, -1)[:, 0], tower[:, 0])


@torch.no_grad()
def test_several_images_in_one_prompt_each_keep_their_count(llava):
    one = make_batch(text=(4,))
    image = torch.full((1, TOKENS), IMAGE_TOKEN)
    ids = torch.cat([one["input_ids"], image, torch.tensor([[7, 8]])], 1)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    with budgetprune.prune(llava, "uniform", keep=[2, 5]) as pruning:
        logits = llava(input_ids=ids, pixel_values=pixels).logits
    assert logits.shape[1] == ids.shape[1] - 2 * TOKENS + 7
    with budgetprune.prune(llava, "fastv", keep=6) as pruning:
        llava(input_ids=ids, pixel_values=pixels)
        assert pruning.plan.counts() == [6]


@torch.no_grad()
def test_a_deep_copy_prunes_on_its_own(llava):
    batch = make_batch()
    budgetprune.prune(llava, "prumerge", keep=4)
    expected = llava(**batch).logits
    twin = copy.deepcopy(llava)
    for parameter in llava.parameters():
        parameter.zero_()
    assert torch.equal(twin(**batch).logits, expected)
    assert twin.generate.__self__ is twin
    budgetprune.unprune(twin)
    assert "budget_pruner" in llava._modules and "budget_pruner" not in twin._modules


@torch.no_grad()
def test_position_gaps_without_a_mask_are_not_read_as_packed_sequences(llava):
    batch = make_batch(text=(4, 4))
    with budgetprune.prune(llava, "adaptive", keep=5):
        with_mask = llava(**batch, use_cache=False).logits
        without = llava(**{k: v for k, v in batch.items() if k != "attention_mask"}, use_cache=False).logits
        greedy = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(llava.generate(**batch, **greedy), llava.generate(**batch, **greedy, use_cache=False))
    torch.testing.assert_close(without, with_mask)


@torch.no_grad()
def test_text_only_calls_pass_untouched(llava):
    ids = torch.tensor([[1, 5, 6, 7]])
    expected = llava(input_ids=ids).logits
    for method in METHODS:
        with budgetprune.prune(llava, method, keep=4):
            assert torch.equal(llava(input_ids=ids).logits, expected)
            assert llava.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 6)


@torch.no_grad()
def test_calls_without_images_are_the_stock_models_own(llava):
    ids = torch.tensor([[1, 5, 6, 1, 8, 9]])
    packed = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "use_cache": False}
    embeds = llava.get_input_embeddings()(ids)
    expected = llava(input_ids=ids, **packed).logits
    with budgetprune.prune(llava, "adaptive", keep=4):
        assert torch.equal(llava(input_ids=ids, **packed).logits, expected)
        torch.testing.assert_close(llava(inputs_embeds=embeds, **packed).logits, expected)


@torch.no_grad()
def test_a_method_may_ask_for_the_attention_of_cls(llava):
    """TokenView.attention on the vision side: the CLS row of the tower's last block, as eager attention gives it."""
    from budgetprune.selectors import Selector

    class ByAttention(Selector):
        needs = frozenset({"attention"})

        def score(self, view):
            return view.need("attention")

    ByAttention.name = "by_attention"
    batch, eager = make_batch(), make_llava("eager")
    eager.load_state_dict(llava.state_dict())
    rows = eager.model.vision_tower(batch["pixel_values"], output_attentions=True).attentions[-1].mean(1)[:, 0, 1:]
    with budgetprune.prune(llava, ByAttention(), keep=5) as pruning:
        llava(**batch)
        assert torch.equal(pruning.plan.kept.long(), rows.topk(5).indices.sort().values)


def bad(error, match, **arguments):
    return pytest.param(arguments, error, match, id=match)


@pytest.mark.parametrize("arguments, error, match", [
    bad(ValueError, "unknown method 'fastvv'; known: adaptive", method="fastvv", keep=4),
    bad(ValueError, "keep must be given: fastv", method="fastv"),
    bad(ValueError, "keep must be at least 0, got -1", method="fastv", keep=-1),
    bad(TypeError, "keep must be an int", method="fastv", keep="half"),
    bad(ValueError, r"keep as a fraction must be in \[0, 1\], got 1.5", method="uniform", keep=1.5),
    bad(ValueError, r"layer must be in \[1, 3\] for a decoder of 4 layers, got 9", method="fastv", keep=4, layer=9),
    bad(ValueError, "layer must be at least 1", method="fastv", keep=4, layer=0),
    bad(ValueError, r"fastv takes the options \['layer'\], got \['depth'\]", method="fastv", keep=4, depth=3),
    bad(ValueError, "train_keep is for trainable methods", method="fastv", keep=4, train_keep=(1, 2)),
    bad(ValueError, "estimator must be one of", method="adaptive", keep=4, estimator="magic"),
    bad(ValueError, "K_min <= K_max", method="adaptive", keep=4, train_keep=(5, 2)),
])
def test_bad_arguments_get_a_clear_error_and_change_nothing(llava, arguments, error, match):
    before = state_of(llava)
    method = arguments.pop("method")
    with pytest.raises(error, match=match):
        budgetprune.prune(llava, method, **arguments)
    assert state_of(llava) == before


def test_wrong_use_of_a_pruned_model_is_refused(llava):
    batch = make_batch()
    with pytest.raises(ValueError, match="model is not pruned"):
        budgetprune.unprune(llava)
    with pytest.raises(TypeError, match="model must be one of LlavaForConditionalGeneration.*got Linear"):
        budgetprune.prune(torch.nn.Linear(2, 2), "fastv", keep=4)
    with budgetprune.prune(llava, "uniform", keep=[3, 4, 5]):
        with pytest.raises(ValueError, match="model is pruned already"):
            budgetprune.prune(llava, "fastv", keep=4)
        with pytest.raises(ValueError, match="keep must have 2 entries, one per image, got 3"):
            llava(**batch)
    with budgetprune.prune(llava, "uniform", keep=3):
        short = {**batch, "input_ids": batch["input_ids"].clone()}
        short["input_ids"][0, -9] = 7
        with pytest.raises(ValueError, match="16 image tokens for each of the 2 images, 32 in all, got 31"):
            llava(**short)
        with pytest.raises(ValueError, match="input_ids must be given with pixel_values"):
            llava(pixel_values=batch["pixel_values"], inputs_embeds=torch.zeros(2, 24, 64))


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [("uniform", 4), ("fastv", 4), ("uniform+fastv", (8, 4))])
def test_images_without_input_ids_are_refused(llava, method, keep):
    batch = make_batch()
    embedded = llava.get_input_embeddings()(batch["input_ids"])
    wanted = "input_ids must be given with pixel_values"
    with budgetprune.prune(llava, method, keep=keep), pytest.raises(ValueError, match=wanted):
        llava(inputs_embeds=embedded, attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"])


@torch.no_grad()
def test_images_behind_a_cached_text_are_refused_where_the_whole_prompt_is_needed(llava):
    from transformers import DynamicCache

    batch, cache = make_batch(), DynamicCache(config=llava.config.get_text_config())
    with budgetprune.prune(llava, "fastv", keep=4):
        llava(input_ids=torch.tensor([[1, 5, 6]] * 2), past_key_values=cache)
        mask = torch.cat([torch.ones(2, 3, dtype=torch.long), batch["attention_mask"]], 1)
        with pytest.raises(ValueError, match="past_key_values must be empty where images come, got 3 tokens: fastv"):
            llava(input_ids=batch["input_ids"], attention_mask=mask, pixel_values=batch["pixel_values"],
                  past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [("uniform", 4), ("fastv", 4), ("uniform+fastv", (8, 4))])
def test_a_prompt_without_images_leaves_no_plan_of_the_one_before(llava, method, keep):
    with budgetprune.prune(llava, method, keep=keep) as pruning:
        llava(**make_batch())
        assert pruning.plan is not None
        llava(input_ids=torch.tensor([[1, 5, 6]]))
        assert pruning.plan is None and pruning.index is None and pruning.stages == ()
