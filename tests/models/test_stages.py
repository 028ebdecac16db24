"""Several stages inside the decoder, against a full-length model whose layers may not look at what was dropped."""

import pytest
import torch
from tiny import IMAGE_TOKEN, make_batch, make_llava

import budgetprune
from budgetprune.models.attention import rows_received
from budgetprune.selectors import build

STAGED = {"pyramiddrop": {}, "sparsevlm": {"recycle": False}}


def columns(batch):
    """[B, L] int64, which image token of its sample stands in a column, -1 where none."""
    is_image = batch["input_ids"] == IMAGE_TOKEN
    return (is_image.cumsum(1) - 1).masked_fill(~is_image, -1)


def stays(batch, plan):
    """[B, L] bool: columns of the prompt that a stage leaves."""
    stay = (batch["input_ids"] != IMAGE_TOKEN) & batch["attention_mask"].bool()
    for b, kept in enumerate(plan.kept):
        stay[b] |= torch.isin(columns(batch)[b], kept[kept >= 0].long())
    return stay


def masked_logits(model, batch, stages):
    """The unpruned model, but from each stage's layer on nothing attends to the columns that do not stay.

    stages: {layer: [B, L] bool}.
    """
    length, handles = batch["input_ids"].shape[1], []
    exists = batch["attention_mask"].bool()
    for number, block in enumerate(model.model.language_model.layers):
        stay = torch.ones_like(exists)
        for layer, left in stages.items():
            stay = left if number >= layer else stay
        seen = torch.ones(length, length, dtype=torch.bool).tril() & exists[:, None] & stay[:, None]
        mask = torch.where((seen | torch.eye(length, dtype=torch.bool))[:, None], 0.0, torch.finfo(torch.float32).min)

        def narrow(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(block.register_forward_pre_hook(narrow, with_kwargs=True))
    try:
        return model(**batch, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def staged(pruning, batch, depth=4):
    return dict(zip(pruning.selector.layers(depth), (stays(batch, plan) for plan in pruning.stages), strict=True))


def longer(batch, tokens, more):
    ones = torch.ones(len(tokens), more, dtype=torch.long)
    return {**batch, "input_ids": tokens, "attention_mask": torch.cat([batch["attention_mask"], ones], 1)}


def continued(stages, more):
    return {layer: torch.cat([stay, stay.new_ones(len(stay), more)], 1) for layer, stay in stages.items()}


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("keep", [4, [2, 9], [16, 3]], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", STAGED)
def test_every_layer_sees_what_its_stage_left(method, attention, keep, padding):
    model, batch = make_llava(attention), make_batch(padding=padding)
    with budgetprune.prune(model, method, keep=keep, **STAGED[method]) as pruning:
        logits = model(**batch, use_cache=False).logits
        cached = model(**batch, use_cache=True)
        stages = staged(pruning, batch)
        asked = [keep] * 2 if isinstance(keep, int) else keep
        for number, plan in enumerate(pruning.stages):
            assert plan.counts() == [pruning.selector.stage_keep(k, number, 16) for k in asked]
        assert pruning.plan.counts() == asked
    last = stages[3]
    torch.testing.assert_close(logits[last], masked_logits(model, batch, stages)[last], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cached.logits, logits, atol=1e-5, rtol=1e-5)
    lengths = [cached.past_key_values.get_seq_length(layer) for layer in range(4)]
    assert lengths == [batch["input_ids"].shape[1]] + [int(stay.sum(1).max()) for stay in stages.values()]
    assert all(bool((late <= early).all()) for early, late in zip(stages.values(), list(stages.values())[1:]))


@torch.no_grad()
def test_pyramiddrop_ranks_anew_at_every_stage_among_what_is_left(llava):
    """Each stage takes the best of the last row of attention of a model that drops what the stages before dropped."""
    batch = make_batch(text=(5,))
    start = int((batch["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    eager = make_llava("eager")
    eager.load_state_dict(llava.state_dict())
    with budgetprune.prune(llava, "pyramiddrop", keep=4) as pruning:
        llava(**batch)
        stages = staged(pruning, batch)
    done = {}
    for layer, stay in stages.items():
        rows = []
        handle = eager.model.language_model.layers[layer - 1].self_attn.register_forward_hook(
            lambda module, args, output, rows=rows: rows.append(output[1][0].mean(0)[-1]))
        masked_logits(eager, batch, done)
        handle.remove()
        left = done[layer - 1][0, start:start + 16] if done else torch.ones(16, dtype=torch.bool)
        count = int(stay[0, start:start + 16].sum())
        best = rows[0][start:start + 16].masked_fill(~left, -1).topk(count).indices.sort().values
        assert stay[0, start:start + 16].nonzero().flatten().tolist() == best.tolist()
        done[layer] = stay


@torch.no_grad()
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static", "disable_compile": True}], ids=str)
@pytest.mark.parametrize("method", STAGED)
def test_generation_continues_what_a_full_forward_would_say(llava, method, cache):
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=[2, 7], **STAGED[method]) as pruning:
        tokens = llava.generate(**batch, max_new_tokens=8, do_sample=False, suppress_tokens=[IMAGE_TOKEN], **cache)
        stages = staged(pruning, batch)
    logits = masked_logits(llava, longer(batch, tokens[:, :-1], 7), continued(stages, 7))
    logits[..., IMAGE_TOKEN] = -torch.inf
    assert torch.equal(logits[:, -8:].argmax(-1), tokens[:, -8:])


@torch.no_grad()
@pytest.mark.parametrize("method", STAGED)
def test_a_beams_score_is_the_likelihood_of_its_text(llava, method):
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=[2, 7], **STAGED[method]) as pruning:
        llava(**batch)
        stages = staged(pruning, batch)
        out = llava.generate(**batch, max_new_tokens=4, do_sample=False, num_beams=3, length_penalty=0.0,
                             suppress_tokens=[IMAGE_TOKEN], return_dict_in_generate=True, output_scores=True)
    logits = masked_logits(llava, longer(batch, out.sequences, 4), continued(stages, 4))[:, -5:-1]
    likelihood = logits.log_softmax(-1).gather(2, out.sequences[:, -4:, None]).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores, likelihood, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["pyramiddrop", "sparsevlm"])
def test_gradient_checkpointing_gives_the_same_gradients(llava, method, reentrant):
    batch, weight = make_batch(labels=True), llava.model.multi_modal_projector.linear_1.weight
    llava.train()
    with budgetprune.prune(llava, method, keep=[5, 3]):
        llava(**batch).loss.backward()
        expected = weight.grad.clone()
        llava.zero_grad()
        llava.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        llava.enable_input_require_grads()
        llava(**batch).loss.backward()
    assert float(expected.abs().sum()) > 0
    torch.testing.assert_close(weight.grad, expected)


@torch.no_grad()
def test_recycled_tokens_are_the_means_of_their_clusters(llava):
    """A decoder of our own, layer by layer: what sparsevlm makes of dropped tokens stands where its centre stood."""
    batch, seen, plans = make_batch(text=(6,)), {}, []
    with budgetprune.prune(llava, "sparsevlm", keep=5) as pruning:
        blocks = llava.model.language_model.layers
        handles = [block.register_forward_hook(lambda module, args, output, n=n: seen.setdefault(n, output))
                   for n, block in enumerate(blocks)]
        handles += [block.register_forward_pre_hook(
            lambda module, args, n=n: seen.setdefault(("in", n), args[0])) for n, block in enumerate(blocks)]
        plan = type(pruning.selector).plan

        def noted(self, view, keep):
            plans.append(plan(self, view, keep))
            return plans[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pruning.selector), "plan", noted)
            llava(**batch)
        for handle in handles:
            handle.remove()
        kept = [p.kept[0].tolist() for p in pruning.stages]
    assert all(p.merge is not None for p in plans)
    start = int((batch["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    count = 16
    for number, layer in enumerate((1, 2, 3)):
        before = seen[layer - 1][0]
        image = before[start:start + count]
        expected = torch.cat([before[:start], plans[number].merge.dense(count)[0] @ image, before[start + count:]])
        torch.testing.assert_close(seen["in", layer][0], expected)
        count = len(kept[number])
    assert kept[2] == sorted(kept[2]) and set(kept[2]) <= set(kept[1]) <= set(kept[0])


@torch.no_grad()
@pytest.mark.parametrize("recycle", [True, False])
def test_one_stage_that_keeps_all_does_not_keep_the_next_from_dropping(llava, recycle):
    batch = make_batch()
    with budgetprune.prune(llava, "sparsevlm", keep=15, recycle=recycle) as pruning:
        assert llava(**batch).logits.isfinite().all()
        assert pruning.plan.counts() == [15, 15]


def test_attention_of_rows_is_that_of_a_whole_causal_softmax():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 40, 8), torch.randn(2, 2, 40, 8)
    rows = torch.rand(2, 40) < 0.6
    rows[1, 5:] = False
    exists = torch.ones(2, 40, dtype=torch.bool)
    exists[0, :3] = False
    rows &= exists
    whole = (query * 0.3) @ key.repeat_interleave(2, 1).transpose(-1, -2)
    seen = torch.ones(40, 40, dtype=torch.bool).tril() & exists[:, None]
    whole = whole.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num().mean(1)
    expected = (whole * rows[..., None]).sum(1)
    torch.testing.assert_close(rows_received(query, key, rows, exists=exists, scale=0.3), expected)


def test_stages_that_a_decoder_has_no_room_for_are_refused(llava):
    with pytest.raises(ValueError, match=r"at must name 3 different layers .* for a decoder of 4 layers"):
        budgetprune.prune(llava, "pyramiddrop", keep=4, at=(0.5, 0.8, 0.9))
    with pytest.raises(ValueError, match="at must be ascending fractions"):
        build("pyramiddrop", at=(0.5, 0.25))
    assert "budget_pruner" not in llava._modules
