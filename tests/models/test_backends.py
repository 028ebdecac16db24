"""Caches and attention backends in every family: a pruned model says the same over all of them."""

import pytest
import torch
from emulated_flash import emulated
from families import FAMILIES, IMAGE, VIDEO, make_inputs, make_model
from test_families_inside import masked_logits, stay_of
from test_turns import Exact
from transformers import AttentionInterface, QuantizedCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

import budgetprune

KEEPS = {"uniform": [3, 2], "fastv": [3, 2], "uniform+fastv": ([5, 4], [3, 2])}
MORE = {"adaptive": [3, 2], "visionzip": [3, 2], "pyramiddrop": [3, 2], "adaptive+fastv": ([5, 4], [3, 2])}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
STATIC = {"cache_implementation": "static", "disable_compile": True}
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@torch.no_grad()
def said(model, inputs, method, keep, *caches):
    """(logits where something stayed, generated tokens, one more generation for each of `caches`) of a pruned model."""
    torch.manual_seed(0)  # an untrained controller is drawn from torch's generator
    with budgetprune.prune(model, method, keep=keep) as pruning:
        logits = model(**inputs).logits
        exists = inputs["attention_mask"].bool() if pruning.valid is None else pruning.valid
        exists = exists & (logits != logits[..., :1]).any(-1)  # what is dropped inside the decoder has logits all equal
        return logits[exists], *(model.generate(**inputs, **GREEDY, **cache) for cache in ({}, *caches))


@torch.no_grad()
@pytest.mark.parametrize("method", KEEPS)
def test_static_and_quantised_caches_say_what_the_dynamic_one_says(name, method):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    quantised = QuantizedCache("fp8", config=model.config.get_text_config())
    quantised.layers = [Exact(residual_length=3) for _ in quantised.layers]
    _, dynamic, *others = said(model, inputs, method, KEEPS[method], STATIC, {"past_key_values": quantised})
    assert all(torch.equal(other, dynamic) for other in others)
    assert quantised.get_seq_length(3) < quantised.get_seq_length(0) or method == "uniform"


@pytest.mark.parametrize("method", KEEPS)
def test_flex_attention_says_what_sdpa_says(name, method):
    """As torch's own reference of it: its compiled form on a CPU has no decoding step, in the stock model either.
    Nor has the stock model a static cache there. Everywhere else the compiled form is what runs."""
    if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        with pytest.raises(ValueError, match="does not support an attention implementation through torch's flex"):
            make_model(name, "flex_attention")
        return
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    with torch.compiler.set_stance("force_eager"):
        expected, got = (said(m, inputs, method, KEEPS[method]) for m in (model, make_model(name, "flex_attention")))
    torch.testing.assert_close(got[0], expected[0], **CLOSE)
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("method", {**KEEPS, **MORE})
def test_flash_attention_says_what_sdpa_says(name, method, rows):
    """Its kernels in plain torch; all on the way to them is transformers' own. In a batch of one it has no mask."""
    model, keep = make_model(name), {**KEEPS, **MORE}[method]
    keep = tuple(part[:rows] for part in keep) if "+" in method else keep[:rows]
    inputs, _ = make_inputs(name, model, words=(5, 3)[:rows], images=(1, 1)[:rows])
    expected = said(model, inputs, method, keep)
    with emulated(model):
        got = said(model, inputs, method, keep, STATIC)
    torch.testing.assert_close(got[0], expected[0], **CLOSE)
    assert torch.equal(got[1], expected[1]) and torch.equal(got[2], expected[1])


@pytest.fixture
def watched():
    """The name of an attention implementation that is sdpa, but refuses position ids with gaps between them."""
    def attention(module, query, key, value, attention_mask, position_ids=None, **kwargs):
        if position_ids is not None and position_ids.shape[-1] > 1:
            assert (position_ids.diff() == 1).all(), "flash attention would look for packed sequences here"
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("watched", attention)
    AttentionMaskInterface.register("watched", sdpa_mask)
    yield "watched"
    del AttentionInterface._global_mapping["watched"], AttentionMaskInterface._global_mapping["watched"]


@pytest.mark.parametrize("method", ["adaptive", "uniform", "fastv", "adaptive+fastv"])
def test_no_layer_of_a_batch_of_one_is_given_position_ids_with_gaps(name, method, watched):
    """Flash attention takes them for several sequences in one row, and waits for the device in every layer to see."""
    model, keep = make_model(name, watched), (5, 3) if "+" in method else 3
    inputs, _ = make_inputs(name, model, words=(5,), images=(1,))
    logits, tokens = said(model, inputs, method, keep)
    assert logits.isfinite().all() and tokens.shape[1] == inputs["input_ids"].shape[1] + 4


@torch.no_grad()
def test_packed_sequences_that_the_caller_names_stay_apart(watched):
    """Position ids of the caller's own reach the layers, so that a model without images still tells sequences apart."""
    model = make_model("llava", watched)
    with budgetprune.prune(model, "adaptive", keep=3), pytest.raises(AssertionError, match="packed sequences"):
        model(input_ids=torch.tensor([[1, 5, 6, 1, 7]]), position_ids=torch.tensor([[0, 1, 2, 0, 1]]))


@torch.no_grad()
@pytest.mark.cuda
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="no flash_attn here")
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("method", ["uniform", "fastv"])
def test_flash_attentions_own_kernels_say_what_sdpa_says(name, method, rows):
    """In bfloat16, where another backend may choose others of two tokens that are almost alike: so FastV's choice is
    given to the stock model as columns that its layers may not look at."""
    sdpa, flash = (make_model(name, backend).to("cuda", torch.bfloat16) for backend in ("sdpa", "flash_attention_2"))
    inputs, _ = make_inputs(name, make_model(name), words=(5, 3)[:rows], images=(1, 1)[:rows])
    inputs = {key: value.cuda() for key, value in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with budgetprune.prune(flash, method, keep=[3, 2][:rows]) as pruning:
        got, exists = flash(**inputs).logits, pruning.valid
        assert flash.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 4
        if method == "fastv":
            exists = stay_of(inputs, pruning.plan)
            expected = masked_logits(sdpa, inputs, {2: exists})
    if method == "uniform":
        with budgetprune.prune(sdpa, method, keep=[3, 2][:rows]):
            expected = sdpa(**inputs).logits
    error = (got[exists] - expected[exists]).float().norm() / expected[exists].float().norm()
    assert error < 0.05
