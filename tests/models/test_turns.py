"""Conversations over a pruned cache, and the forms that a cache can have."""

import pytest
import torch
from test_stages import continued, masked_logits, staged
from tiny import IMAGE_TOKEN, make_batch, make_llava
from transformers import DynamicCache, QuantizedCache
from transformers.cache_utils import QuantizedLayer

import budgetprune

VISION = {"uniform": 5, "prumerge": 5, "adaptive": [3, 9]}
INSIDE = {"fastv": [2, 9], "pyramiddrop": 4, "sparsevlm": [4, 9]}
BOTH = {"uniform+fastv": (9, [2, 4]), "prumerge+pyramiddrop": (12, 4)}
GREEDY = {"do_sample": False, "suppress_tokens": [IMAGE_TOKEN], "return_dict_in_generate": True}


def words(seed, count=3, rows=2):
    return torch.randint(2, 90, (rows, count), generator=torch.Generator().manual_seed(seed))


def said(batch, sequences, seed):
    """The whole conversation with a new question: (ids, mask)."""
    ids = torch.cat([sequences, words(seed)], 1)
    more = ids.shape[1] - batch["attention_mask"].shape[1]
    return ids, torch.cat([batch["attention_mask"], torch.ones(2, more, dtype=torch.long)], 1)


class Fed:
    """Counts the tokens that each call of the decoder is given."""

    def __init__(self, model):
        self.tokens = []
        self.handle = model.model.language_model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.tokens.append(kwargs["inputs_embeds"].shape[1])


@torch.no_grad()
@pytest.mark.parametrize("again", [False, True], ids=["without images", "with the images again"])
@pytest.mark.parametrize("method", VISION)
def test_later_turns_feed_only_new_tokens_and_say_what_the_conversation_anew_says(llava, method, again):
    batch, images = make_batch(), {}
    with budgetprune.prune(llava, method, keep=VISION[method]):
        out = llava.generate(**batch, max_new_tokens=4, **GREEDY)
        for turn in (1, 2):
            ids, mask = said(batch, out.sequences, turn)
            images = {"pixel_values": batch["pixel_values"]}
            fresh = llava.generate(input_ids=ids, attention_mask=mask, **images, max_new_tokens=4, **GREEDY)
            fed = Fed(llava)
            out = llava.generate(input_ids=ids, attention_mask=mask, past_key_values=out.past_key_values,
                                 max_new_tokens=4, **(images if again else {}), **GREEDY)
            fed.handle.remove()
            assert fed.tokens == [4, 1, 1, 1]  # the last word of the answer, and the question
            assert torch.equal(out.sequences, fresh.sequences)


@torch.no_grad()
@pytest.mark.parametrize("method", INSIDE)
def test_a_later_turn_continues_what_the_first_left_in_every_layer(llava, method):
    batch, options = make_batch(), {"recycle": False} if method == "sparsevlm" else {}
    with budgetprune.prune(llava, method, keep=INSIDE[method], **options) as pruning:
        first = llava.generate(**batch, max_new_tokens=4, **GREEDY)
        stages = staged(pruning, batch)
        ids, mask = said(batch, first.sequences, 1)
        fed = Fed(llava)
        second = llava.generate(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"],
                                past_key_values=first.past_key_values, max_new_tokens=5, **GREEDY).sequences
        fed.handle.remove()
    assert fed.tokens == [4, 1, 1, 1, 1]
    mask = torch.cat([mask, torch.ones(2, 4, dtype=torch.long)], 1)
    whole = {**batch, "input_ids": second[:, :-1], "attention_mask": mask}
    more = second.shape[1] - 1 - batch["input_ids"].shape[1]
    logits = masked_logits(llava, whole, continued(stages, more))
    logits[..., IMAGE_TOKEN] = -torch.inf
    assert torch.equal(logits[:, -5:].argmax(-1), second[:, -5:])


@torch.no_grad()
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_padding_between_turns_is_seen_by_no_layer(llava, method):
    """New questions of different lengths, padded on the left, in one forward over the cache."""
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=[2, 7]) as pruning:
        where = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
        cache = llava(**batch, position_ids=where, use_cache=True).past_key_values
        stages = staged(pruning, batch)
        new, tail = words(4), torch.tensor([[1, 1, 1], [0, 0, 1]])
        mask = torch.cat([batch["attention_mask"], tail], 1)
        where = mask.cumsum(1) - 1
        got = llava(input_ids=new, attention_mask=mask, past_key_values=cache, position_ids=where[:, -3:]).logits
        step = llava(input_ids=words(5, 1), past_key_values=cache, position_ids=where[:, -1:] + 1,
                     attention_mask=torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)).logits
    ids = torch.cat([batch["input_ids"], new, words(5, 1)], 1)
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    whole = {**batch, "input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    expected = masked_logits(llava, whole, continued(stages, 4))
    torch.testing.assert_close(got[tail.bool()], expected[:, -4:-1][tail.bool()], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step, expected[:, -1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", BOTH)
def test_two_methods_go_on_in_a_later_turn(llava, method):
    """Step by step over the first cache says the same as one call with the whole conversation."""
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=BOTH[method]):
        caches = [llava.generate(**batch, max_new_tokens=4, **GREEDY) for _ in range(2)]
        ids, mask = said(batch, caches[0].sequences, 1)
        out = llava.generate(input_ids=ids, attention_mask=mask, past_key_values=caches[0].past_key_values,
                             max_new_tokens=2, **GREEDY)
        cache = caches[1].past_key_values
        seen = cache.get_seq_length() - ids.shape[1] + 4  # what the cache holds less than the conversation
        for column in range(4, 0, -1):
            past = shorter(mask[:, : ids.shape[1] - column + 1], seen)
            logits = llava(input_ids=ids[:, -column][:, None], past_key_values=cache, attention_mask=past,
                           position_ids=past.sum(1, keepdim=True) - 1).logits
    logits[..., IMAGE_TOKEN] = -torch.inf
    assert torch.equal(logits[:, -1].argmax(-1), out.sequences[:, -2])


def shorter(mask, less):
    """The mask over the pruned prompt: it has the caller's padding, for all rows keep the same count."""
    return torch.cat([mask[:, :5], mask[:, 5 - less:]], 1)


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [*VISION.items(), *INSIDE.items(), *BOTH.items()])
def test_a_later_turn_may_be_fed_in_chunks_but_not_speculate(llava, method, keep):
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=keep):
        said_by = []
        for chunks in ({}, {"prefill_chunk_size": 2}):
            out = llava.generate(**batch, max_new_tokens=4, **GREEDY)
            ids, mask = said(batch, out.sequences, 1)
            later = {"input_ids": ids, "attention_mask": mask, "past_key_values": out.past_key_values}
            for option in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": llava}):
                with pytest.raises(ValueError, match=f"{next(iter(option))} cannot be used over a cache that holds"):
                    llava.generate(**later, max_new_tokens=6, **option)
            said_by.append(llava.generate(**later, max_new_tokens=6, **chunks, **GREEDY).sequences)
    assert torch.equal(*said_by)


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [("uniform", 5), ("prumerge", 5), ("adaptive", 5)])
def test_a_prompt_pruned_before_the_language_model_may_speculate_and_be_fed_in_chunks(llava, method, keep):
    row = {name: value[:1] for name, value in make_batch().items()}
    with budgetprune.prune(llava, method, keep=keep):
        said_by = [llava.generate(**row, max_new_tokens=6, **option, **GREEDY).sequences
                   for option in ({}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 4})]
    assert torch.equal(said_by[0], said_by[1]) and torch.equal(said_by[0], said_by[2])


@pytest.mark.parametrize("method, keep", [("pyramiddrop", 4), ("sparsevlm", 4), ("uniform+fastv", (8, 4))])
@pytest.mark.parametrize("option", ["prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model"])
def test_generation_that_hides_the_prompts_end_is_refused(llava, method, keep, option):
    value = llava if option == "assistant_model" else 3
    with budgetprune.prune(llava, method, keep=keep):
        with pytest.raises(ValueError, match=f"{option} cannot be used with {method.split('+')[-1]}.*use a method"):
            llava.generate(**make_batch(), max_new_tokens=2, **{option: value})


@torch.no_grad()
def test_a_later_turn_that_does_not_follow_the_first_is_refused(llava):
    batch = make_batch(text=(5, 5))
    with budgetprune.prune(llava, "uniform", keep=4):
        out = llava.generate(**batch, max_new_tokens=3, **GREEDY)
        ids, cache = torch.cat([out.sequences, words(1)], 1), {"past_key_values": out.past_key_values}
        other = ids.clone()
        other[1, 1] += 1
        with pytest.raises(ValueError, match="input_ids must begin with the prompt that past_key_values holds"):
            llava.generate(input_ids=other, **cache, max_new_tokens=2)
        with pytest.raises(ValueError, match="input_ids must have 2 rows, as many as past_key_values, got 1"):
            llava.generate(input_ids=ids[:1], **cache, max_new_tokens=2)
        with pytest.raises(ValueError, match="must not have new images"):
            llava.generate(input_ids=torch.cat([ids, batch["input_ids"]], 1), **cache, max_new_tokens=2)


@torch.no_grad()
def test_a_cache_whose_layers_do_not_fit_together_is_refused(llava):
    with budgetprune.prune(llava, "fastv", keep=4):
        cache = llava(**make_batch(text=(5, 5)), use_cache=True).past_key_values
        cache.layers[2].crop(-1)
        with pytest.raises(ValueError, match=r"past_key_values must hold 12 tokens in layer 2.*got 11.*by crop\(-n\)"):
            llava(input_ids=words(1), past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [("uniform", 5), ("fastv", 5), ("uniform+fastv", (9, 5))])
def test_a_cache_that_was_emptied_remembers_nothing(llava, method, keep):
    """A prompt that keeps all in the cache of one that did not, and text alone."""
    first, second = make_batch(), make_batch(seed=7)
    text = {"input_ids": words(3, 30), "attention_mask": torch.ones(2, 30, dtype=torch.long)}
    with budgetprune.prune(llava, method, keep=keep) as pruning:
        cache = DynamicCache(config=llava.config.get_text_config())
        llava.generate(**first, past_key_values=cache, max_new_tokens=3, **GREEDY)
        for prompt in (second, text):
            pruning.set_keep((16, 16) if "+" in method else 16)
            cache.reset()
            reused = llava.generate(**prompt, past_key_values=cache, max_new_tokens=4, **GREEDY).sequences
            assert torch.equal(reused, llava.generate(**prompt, max_new_tokens=4, **GREEDY).sequences)
            longer = {"input_ids": torch.cat([reused, words(5)], 1)}
            longer["attention_mask"] = torch.cat([prompt["attention_mask"], torch.ones(2, 7, dtype=torch.long)], 1)
            again = llava.generate(**longer, past_key_values=cache, max_new_tokens=2, **GREEDY).sequences
            pixels = {"pixel_values": prompt["pixel_values"]} if "pixel_values" in prompt else {}
            assert torch.equal(again, llava.generate(**longer, **pixels, max_new_tokens=2, **GREEDY).sequences)


class Exact(QuantizedLayer):
    """A quantised cache that loses nothing, so that its lengths and its flushing can be compared."""

    def _quantize(self, tensor, axis):
        return tensor.clone()

    def _dequantize(self, tensor):
        return tensor


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [*VISION.items(), *INSIDE.items(), *BOTH.items()])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_quantised_cache_says_what_the_dynamic_one_says(llava, method, keep, beams):
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=keep):
        llava.budget_pruner.requires_grad_(False)
        expected = llava.generate(**batch, max_new_tokens=8, num_beams=beams, **GREEDY)
        cache = QuantizedCache("fp8", config=llava.config.get_text_config())
        cache.layers = [Exact(residual_length=3) for _ in cache.layers]
        got = llava.generate(**batch, max_new_tokens=8, num_beams=beams, past_key_values=cache, **GREEDY)
    assert torch.equal(got.sequences, expected.sequences)
    lengths = [[c.get_seq_length(layer) for layer in range(4)] for c in (cache, expected.past_key_values)]
    assert lengths[0] == lengths[1]


@torch.no_grad()
@pytest.mark.parametrize("method", ["uniform", "fastv", "pyramiddrop"])
def test_an_eight_bit_cache_stays_near_the_dynamic_one(method):
    llava, batch = make_llava(), make_batch()
    with budgetprune.prune(llava, method, keep=5):
        scores = []
        for cache in (None, QuantizedCache("fp8", config=llava.config.get_text_config())):
            out = llava.generate(**batch, max_new_tokens=2, output_scores=True, past_key_values=cache, **GREEDY)
            scores.append(out.scores[1].masked_fill(out.scores[1].isinf(), 0))
    error = (scores[0] - scores[1]).norm() / scores[0].norm()
    assert 0 < error < 0.25
