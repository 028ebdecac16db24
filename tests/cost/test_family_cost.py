"""FLOPs, cache bytes and parameters of every family, by formula, against torch's counter and the real things."""

from functools import cache

import pytest
import torch
from families import FAMILIES, make_inputs, make_model
from torch.utils.flop_counter import FlopCounterMode

import budgetprune
from budgetprune.cost import (
    VlmShape,
    decode_flops_per_token,
    kv_bytes,
    parameters,
    prefill_flops,
    see,
    shape_of,
)
from budgetprune.selectors import build

WORDS = 5


@cache
def model_of(name):
    """Eager attention and experts: the same products as the fused kernels, of which torch's counter knows nothing."""
    model = make_model(name, attention="eager")
    model.set_experts_implementation("eager")
    return model


def next_token(model, held, length):
    mask = torch.ones(1, length + 1, dtype=torch.long)
    more = {"position_ids": torch.full((3, 1, 1), length)} if hasattr(model.model, "rope_deltas") else {}
    return model(input_ids=torch.tensor([[7]]), attention_mask=mask, past_key_values=held, **more)


def prompt(name):
    """(model, inputs of one prompt with one image, shape, N, T, what the encoder sees of the image)."""
    model = model_of(name)
    inputs, (tokens,) = make_inputs(name, model, words=(WORDS,), images=(1,))
    shape = VlmShape.from_config(model.config)
    seen = {}
    if shape.packed:
        seen = {"grids": inputs["image_grid_thw"].tolist()}
    elif "image_sizes" in inputs:
        found = see(shape, *inputs["image_sizes"][0].tolist())
        assert found.tokens == tokens
        seen = {"crops": found.crops}
    return model, inputs, shape, tokens, inputs["input_ids"].shape[1] - tokens, seen


def counted(call):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = call()
    return counter.get_total_flops(), out


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_costs_what_torch_counts(name, logits):
    model, inputs, shape, tokens, text, seen = prompt(name)
    truth, _ = counted(lambda: model(**inputs, logits_to_keep=int(logits == "last")))
    assert prefill_flops(shape, tokens, tokens, text, logits=logits, **seen).total == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_costs_what_torch_counts(name):
    model, inputs, shape, tokens, text, seen = prompt(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    by_module = {key.partition(".")[2]: sum(value.values()) for key, value in counter.get_flop_counts().items()}
    found = prefill_flops(shape, tokens, tokens, text, **seen)
    assert found.head == by_module["lm_head"]
    if shape.packed:
        assert found.vision + found.projector == by_module["model.visual"]
    else:
        assert found.vision == by_module["model.vision_tower"]
        assert found.projector == by_module["model.multi_modal_projector"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_pruned_before_the_decoder_costs_what_torch_counts(name):
    keep = 3
    model, inputs, shape, tokens, text, seen = prompt(name)
    with budgetprune.prune(model, "uniform", keep=keep):  # which has no products of its own
        truth, _ = counted(lambda: model(**inputs, logits_to_keep=1))
    assert prefill_flops(shape, tokens, keep, text, **seen).total == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("method", [("fastv", {"layer": 1}), ("pyramiddrop", {})], ids=["fastv", "pyramiddrop"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_pruned_inside_the_decoder_and_its_next_token_cost_what_torch_counts(name, method):
    model, inputs, shape, tokens, text, seen = prompt(name)
    chosen, keep = build(method[0], **method[1]), 2
    stages = chosen.stages(tokens, keep, shape.decoder.layers)
    with budgetprune.prune(model, method[0], keep=keep, **method[1]):
        truth, out = counted(lambda: model(**inputs, logits_to_keep=1, use_cache=True))
        found = prefill_flops(shape, tokens, tokens, text, stages=stages, **seen).total
        assert found == pytest.approx(truth, rel=1e-2)
        lengths = [text + next((left for at, left in reversed(stages) if layer >= at), tokens) for layer in range(4)]
        held = out.past_key_values
        assert [layer.keys.nbytes + layer.values.nbytes for layer in held.layers] == kv_bytes(
            shape.decoder, lengths, bytes_per_value=4)
        step, _ = counted(lambda: next_token(model, held, tokens + text))
    assert decode_flops_per_token(shape, [n + 1 for n in lengths]) == pytest.approx(step, rel=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_and_the_next_token_cost_what_they_do(name):
    model, inputs, shape, tokens, text, _ = prompt(name)
    with torch.no_grad():
        held = model(**inputs, logits_to_keep=1, use_cache=True).past_key_values
    stored = [layer.keys.nbytes + layer.values.nbytes for layer in held.layers]
    assert kv_bytes(shape.decoder, tokens + text, bytes_per_value=4) == stored
    truth, _ = counted(lambda: next_token(model, held, tokens + text))
    assert decode_flops_per_token(shape, tokens + text + 1) == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_model(name):
    model = model_of(name)
    found = parameters(VlmShape.from_config(model.config))
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_object_and_its_json_give_one_shape(name):
    config = model_of(name).config
    assert shape_of(config.to_dict()) == shape_of(config)
