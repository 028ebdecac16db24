"""generate() of a pruned model, in all its forms, says what a step-by-step forward says."""

import pytest
import torch
from tiny import IMAGE_TOKEN, make_batch, make_llava

import budgetprune
from budgetprune.selectors.base import find

METHODS = [name for name in budgetprune.methods() if name != "none"]
# Those that choose the same at every step: of the rest one draws, and the others look at a text that grows.
STEADY = [name for name in METHODS if name != "random" and find(name).place == "vision"
          and "text" not in find(name).needs]
KEEPS = [5, [3, 9]]


def step_by_step(model, batch, steps):
    """Greedy decoding without any cache: the pruned forward over image and text, again for every token.

    The method must choose the same tokens each time, which FastV with its changing last token does not.
    """
    batch = dict(batch)
    for _ in range(steps):
        logits = model(**batch, use_cache=False).logits[:, -1]
        logits[:, IMAGE_TOKEN] = -torch.inf
        batch["input_ids"] = torch.cat([batch["input_ids"], logits.argmax(-1, keepdim=True)], 1)
        one = torch.ones_like(batch["attention_mask"][:, :1])
        batch["attention_mask"] = torch.cat([batch["attention_mask"], one], 1)
    return batch["input_ids"]


@torch.no_grad()
@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("method", STEADY)
def test_greedy_generation_equals_forward_step_by_step(llava, method, keep):
    batch = make_batch()
    with budgetprune.prune(llava, method, keep=keep):
        tokens = llava.generate(**batch, max_new_tokens=6, do_sample=False, suppress_tokens=[IMAGE_TOKEN])
        assert torch.equal(tokens, step_by_step(llava, batch, 6))
    assert torch.equal(tokens[:, : batch["input_ids"].shape[1]], batch["input_ids"])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_static_cache_says_what_the_dynamic_cache_says(method, keep, attention):
    model, batch = make_llava(attention), make_batch()
    greedy = {"max_new_tokens": 6, "do_sample": False}
    torch.manual_seed(0)  # an untrained controller is drawn from torch's generator
    with budgetprune.prune(model, method, keep=keep):
        dynamic = model.generate(**batch, **greedy)
    torch.manual_seed(0)
    with budgetprune.prune(model, method, keep=keep):
        static = model.generate(**batch, **greedy, cache_implementation="static", disable_compile=True)
    assert torch.equal(dynamic, static)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_says_what_its_samples_say_alone(llava, method):
    batch, options = make_batch(text=(6, 2)), {"max_new_tokens": 5, "do_sample": False}
    if method == "random":
        pytest.skip("random draws other tokens for another batch")
    with budgetprune.prune(llava, method, keep=[3, 7]) as pruning:
        together = llava.generate(**batch, **options)
        for row, keep in enumerate((3, 7)):
            exists = batch["attention_mask"][row].bool()
            pruning.set_keep(keep)
            alone = llava.generate(input_ids=batch["input_ids"][row:row + 1, exists],
                                   pixel_values=batch["pixel_values"][row:row + 1], **options)
            assert alone[0, -5:].tolist() == together[row, -5:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("method", STEADY)
def test_a_beams_score_is_the_likelihood_of_its_text(llava, method, keep):
    batch = make_batch()
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
               "length_penalty": 0.0, "suppress_tokens": [IMAGE_TOKEN]}
    with budgetprune.prune(llava, method, keep=keep):
        out = llava.generate(**batch, **options, num_beams=3, num_return_sequences=2)
        assert torch.equal(out.sequences[:, :-4], batch["input_ids"].repeat_interleave(2, 0))
        for beam in range(2):
            ids = out.sequences[beam::2]
            mask = torch.cat([batch["attention_mask"], torch.ones(2, 4, dtype=torch.long)], 1)
            logits = llava(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits[:, -5:-1]
            likelihood = logits.log_softmax(-1).gather(2, ids[:, -4:, None]).sum((1, 2))
            torch.testing.assert_close(out.sequences_scores[beam::2], likelihood, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_sampling_repeats_with_its_seed_and_returns_several_sequences(llava, method):
    batch, results = make_batch(), []
    for _ in range(2):
        torch.manual_seed(5)
        with budgetprune.prune(llava, method, keep=[3, 9]):
            results.append(llava.generate(**batch, max_new_tokens=6, do_sample=True, num_return_sequences=3))
    assert torch.equal(*results)
    assert results[0].shape[0] == 6
    assert torch.equal(results[0][:, : batch["input_ids"].shape[1]], batch["input_ids"].repeat_interleave(3, 0))
    assert len({tuple(row) for row in results[0].tolist()}) > 2


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_max_length_counts_the_callers_tokens(llava, method):
    batch = make_batch()
    length = batch["input_ids"].shape[1]
    with budgetprune.prune(llava, method, keep=4):
        assert llava.generate(**batch, max_length=length + 3, do_sample=False).shape[1] == length + 3
        out = llava.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        assert out.sequences.shape[1] == length + 3


@torch.no_grad()
def test_the_callers_inputs_are_not_touched(llava):
    batch = make_batch()
    before = {name: value.clone() for name, value in batch.items()}
    for method in METHODS:
        with budgetprune.prune(llava, method, keep=4):
            llava.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False)
            llava(**batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in batch)


@torch.no_grad()
def test_max_length_of_a_generation_config_counts_the_callers_tokens(llava):
    from transformers import GenerationConfig

    batch = make_batch()
    length = batch["input_ids"].shape[1] + 3
    config = GenerationConfig(max_length=length, do_sample=False, pad_token_id=0)
    with budgetprune.prune(llava, "uniform", keep=4):
        assert llava.generate(**batch, generation_config=config).shape[1] == length
        llava.generation_config.max_length = length
        assert llava.generate(**batch, do_sample=False).shape[1] == length


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_models_generate(method, dtype):
    model, batch = make_llava().to(dtype), make_batch()
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with budgetprune.prune(model, method, keep=[3, 9]):
        assert model(**batch).logits.isfinite().all()
        assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[1] == batch["input_ids"].shape[1] + 3


@torch.no_grad()
def test_threads_do_not_disturb_each_other(llava):
    from concurrent.futures import ThreadPoolExecutor

    batch = make_batch()
    with budgetprune.prune(llava, "prumerge", keep=5):
        expected = llava.generate(**batch, max_new_tokens=3, do_sample=False)
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(llava.generate, **batch, max_new_tokens=3, do_sample=False) for _ in range(12)]
        assert all(torch.equal(run.result(), expected) for run in runs)
