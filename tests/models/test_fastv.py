"""Pruning inside the decoder, against a full-length model whose later layers may not look at dropped columns."""

import pytest
import torch
from tiny import IMAGE_TOKEN, make_batch, make_llava

import budgetprune

LAYER = 2


def kept_columns(model, batch, plan):
    """[B, L] bool: columns of the prompt that stay."""
    stay = (batch["input_ids"] != IMAGE_TOKEN) & batch["attention_mask"].bool()
    for b, kept in enumerate(plan.kept):
        columns = (batch["input_ids"][b] == IMAGE_TOKEN).nonzero().flatten()
        stay[b, columns[kept[kept >= 0].long()]] = True
    return stay


def masked_logits(model, batch, stay):
    """The unpruned model, but from layer LAYER on nothing attends to the columns that do not stay."""
    length, handles = batch["input_ids"].shape[1], []
    exists = batch["attention_mask"].bool()
    seen = torch.ones(length, length, dtype=torch.bool).tril() & exists[:, None] & stay[:, None]
    seen = seen | torch.eye(length, dtype=torch.bool)
    mask = torch.where(seen[:, None], 0.0, torch.finfo(torch.float32).min)

    def narrow(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    for block in model.model.language_model.layers[LAYER:]:
        handles.append(block.register_forward_pre_hook(narrow, with_kwargs=True))
    try:
        return model(**batch, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("keep", [5, [2, 9]], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fastv_equals_the_full_length_model_with_dropped_columns_masked(attention, keep, padding):
    model, batch = make_llava(attention), make_batch(padding=padding)
    with budgetprune.prune(model, "fastv", keep=keep, layer=LAYER) as pruning:
        logits = model(**batch, use_cache=False).logits
        cached = model(**batch, use_cache=True)
        stay = kept_columns(model, batch, pruning.plan)
    expected = masked_logits(model, batch, stay)
    torch.testing.assert_close(logits[stay], expected[stay], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cached.logits, logits, atol=1e-5, rtol=1e-5)
    lengths = [cached.past_key_values.get_seq_length(layer) for layer in range(4)]
    full, longest = batch["input_ids"].shape[1], int(stay.sum(1).max())
    assert lengths == [full, full, longest, longest]


@torch.no_grad()
def test_fastv_keeps_the_authors_choice_at_batch_one(llava):
    """topk of the last row of layer K-1's attention, mean over heads, over the image span; then sorted."""
    batch = make_batch(text=(5,))
    eager = make_llava("eager")
    eager.load_state_dict(llava.state_dict())
    last_row = eager(**batch, output_attentions=True).attentions[LAYER - 1][0].mean(0)[-1]
    start = int((batch["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    expected = last_row[start:start + 16].topk(6).indices.sort().values
    with budgetprune.prune(llava, "fastv", keep=6) as pruning:
        llava(**batch)
        assert pruning.plan.kept[0].tolist() == expected.tolist()


@torch.no_grad()
def test_each_sample_is_ranked_by_its_own_attention(llava):
    batch = make_batch(text=(5, 2))
    plans = []
    for rows in (slice(0, 1), slice(1, 2), slice(0, 2)):
        with budgetprune.prune(llava, "fastv", keep=4) as pruning:
            llava(**{name: value[rows] for name, value in batch.items()})
            plans.append(pruning.plan.kept)
    assert torch.equal(torch.cat(plans[:2]), plans[2])
    assert not torch.equal(plans[0], plans[1])


@torch.no_grad()
def test_generation_continues_what_a_full_forward_would_say(llava):
    batch = make_batch()
    with budgetprune.prune(llava, "fastv", keep=[2, 9]) as pruning:
        tokens = llava.generate(**batch, max_new_tokens=8, do_sample=False)
        stay = kept_columns(llava, batch, pruning.plan)
    new = tokens.shape[1] - batch["input_ids"].shape[1]
    ones = torch.ones(2, new - 1, dtype=torch.long)
    longer = {**batch, "input_ids": tokens[:, :-1], "attention_mask": torch.cat([batch["attention_mask"], ones], 1)}
    logits = masked_logits(llava, longer, torch.cat([stay, ones.bool()], 1))
    assert torch.equal(logits[:, -new:].argmax(-1), tokens[:, -new:])


@torch.no_grad()
def test_a_beams_score_is_the_likelihood_of_its_text(llava):
    batch = make_batch()
    with budgetprune.prune(llava, "fastv", keep=[2, 9]) as pruning:
        llava(**batch)
        stay = kept_columns(llava, batch, pruning.plan)
        out = llava.generate(**batch, max_new_tokens=4, do_sample=False, num_beams=3, length_penalty=0.0,
                             suppress_tokens=[IMAGE_TOKEN],
                             return_dict_in_generate=True, output_scores=True)
    ones = torch.ones(2, 4, dtype=torch.long)
    mask = torch.cat([batch["attention_mask"], ones], 1)
    longer = {**batch, "input_ids": out.sequences, "attention_mask": mask}
    logits = masked_logits(llava, longer, torch.cat([stay, ones.bool()], 1))[:, -5:-1]
    likelihood = logits.log_softmax(-1).gather(2, out.sequences[:, -4:, None]).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores, likelihood, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(llava):
    batch, weight = make_batch(labels=True), llava.model.multi_modal_projector.linear_1.weight
    llava.train()
    with budgetprune.prune(llava, "fastv", keep=5):
        llava(**batch).loss.backward()
        expected = weight.grad.clone()
        llava.zero_grad()
        llava.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        llava(**batch).loss.backward()
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("option", [{"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}])
def test_generation_that_hides_the_last_prompt_token_is_refused(llava, option):
    with budgetprune.prune(llava, "fastv", keep=4):
        with pytest.raises(ValueError, match=f"{next(iter(option))} cannot be used with fastv"):
            llava.generate(**make_batch(), max_new_tokens=2, **option)
