"""Conversations over a pruned cache in every family: what is new is fed, and what is said is what one forward says."""

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO, make_inputs, make_model
from test_families_inside import longer, masked_logits, stay_of

import budgetprune
from budgetprune.models.base import family_of

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO], "return_dict_in_generate": True}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


def conversation(model, inputs):
    """Three turns, each over the cache of the one before: (tokens of all, what each fed to the decoder)."""
    out, fed = model.generate(**inputs, **GREEDY), []
    handle = family_of(model).decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True)
    for turn in (1, 2):
        words = torch.randint(2, 90, (2, 3), generator=torch.Generator().manual_seed(turn))
        more = longer(inputs, torch.cat([out.sequences, words], 1))
        text = {key: more[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
                if key in more}
        out = model.generate(**text, past_key_values=out.past_key_values, **GREEDY)
    handle.remove()
    return out.sequences, fed


def answers(tokens, prompt):
    """The columns that the model wrote: four of each turn, three of the caller's between them."""
    return [prompt + 7 * turn + step for turn in range(3) for step in range(4)]


@torch.no_grad()
@pytest.mark.parametrize("method", ["uniform", "prumerge", "fastv", "uniform+fastv"])
def test_every_turn_says_what_one_forward_over_all_of_it_says(name, method):
    model = make_model(name)
    inputs, _ = make_inputs(name, model, images=(2, 1) if method != "uniform+fastv" else (1, 1))
    keep = {"uniform": [2, 1, 3], "prumerge": [2, 1, 3], "fastv": [5, 3], "uniform+fastv": ([4, 3], [2, 1])}[method]
    options = {"layer": 1} if "fastv" in method else {}
    prompt = inputs["input_ids"].shape[1]
    with budgetprune.prune(model, method, keep=keep, **options) as pruning:
        tokens, fed = conversation(model, inputs)
        assert fed == [4, 1, 1, 1] * 2, "the last word of the answer and the question, then one word at a time"
        whole = longer(inputs, tokens)
        if method == "fastv":
            plan = pruning.plan
            stay = torch.cat([stay_of(inputs, plan), torch.ones(2, tokens.shape[1] - prompt, dtype=torch.bool)], 1)
        elif method != "uniform+fastv":
            logits = model(**whole).logits[:, prompt - tokens.shape[1] - 1:]
    if method == "fastv":
        logits = masked_logits(model, whole, {1: stay})[:, prompt - 1:]
    if method == "uniform+fastv":  # the tests of each say what they keep; here the turns must only go on
        assert tokens.shape[1] == prompt + 18
        return
    logits[..., [IMAGE, VIDEO]] = -torch.inf
    columns = answers(tokens, prompt)
    said = logits.argmax(-1)[:, [column - prompt for column in columns]]
    assert torch.equal(said, tokens[:, columns])
