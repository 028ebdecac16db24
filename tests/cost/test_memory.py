"""Bytes against real modules, and the rooflines against hand arithmetic."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2Config,
)

from budgetprune.cost import (
    DEVICES,
    KNOWN,
    DecoderShape,
    Device,
    VlmShape,
    device,
    flops_of,
    kv_bytes,
    operators_ms,
    parameters,
    prefill_flops,
    roofline_ms,
    table,
    weight_bytes,
)
from budgetprune.cost.operators import Operator, attention, decoder_operators, product

LLAVA = KNOWN["llava-1.5-7b"]
SIZES = dict(vocab_size=131, hidden_size=48, intermediate_size=77, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2)
TEXTS = {"llama": LlamaConfig(**SIZES, head_dim=10), "llama_bias": LlamaConfig(**SIZES, attention_bias=True),
         "qwen2": Qwen2Config(**SIZES)}


def vision():
    return CLIPVisionConfig(hidden_size=30, intermediate_size=50, num_hidden_layers=3, num_attention_heads=3,
                            image_size=23, patch_size=7)


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_parameters_are_those_of_the_module(text):
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision(), text_config=TEXTS[text]))
    found = parameters(VlmShape.from_config(model.config))
    assert found["tower"] == sum(p.numel() for p in model.model.vision_tower.parameters())
    assert found["projector"] == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())


def test_llava_next_has_one_row_end_vector_more():
    with torch.device("meta"):
        config = LlavaNextConfig(vision_config=vision(), text_config=TEXTS["llama"])
        model = LlavaNextForConditionalGeneration(config)
    shape = VlmShape.from_config(config)
    assert shape.projector.vectors == 3 * 48
    assert sum(parameters(shape).values()) == sum(p.numel() for p in model.parameters())


def test_known_models_have_the_sizes_of_their_published_checkpoints():
    """7.06 and 13.35 billion parameters on the model cards of llava-hf/llava-1.5-7b-hf and -13b-hf."""
    assert sum(parameters(LLAVA).values()) == pytest.approx(7.063e9, rel=1e-4)
    assert sum(parameters(KNOWN["llava-1.5-13b"]).values()) == pytest.approx(13.351e9, rel=1e-4)
    assert weight_bytes(LLAVA, bytes_per_value=4) == 2 * weight_bytes(LLAVA)


def test_kv_bytes_are_those_of_a_real_cache():
    config = LlavaConfig(vision_config=vision(), text_config=TEXTS["llama"])
    language = LlavaForConditionalGeneration(config).eval().model.language_model
    with torch.no_grad():
        cache = language(input_ids=torch.ones(2, 11, dtype=torch.long), use_cache=True).past_key_values
    stored = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    assert kv_bytes(VlmShape.from_config(config).decoder, 11, batch=2, bytes_per_value=4) == stored


def test_kv_bytes_of_llava_are_half_a_mebibyte_per_token():
    assert sum(kv_bytes(LLAVA.decoder, 1)) == 2**19


def test_kv_bytes_may_differ_between_layers():
    late = kv_bytes(LLAVA.decoder, [636] * 2 + [124] * 30)
    assert len(late) == 32 and late[1] == 636 * 2**14 and late[2] == 124 * 2**14
    with pytest.raises(ValueError, match="one count per layer, 32, got 3"):
        kv_bytes(LLAVA.decoder, [1, 2, 3])


def test_roofline_is_the_slower_of_the_two():
    assert roofline_ms(312e12, 0, "a100-80g") == pytest.approx(1e3)
    assert roofline_ms(0, 2039e9, "a100-80g") == pytest.approx(1e3)
    assert roofline_ms(312e9, 2039e9, DEVICES["a100-80g"]) == pytest.approx(1e3)
    with pytest.raises(ValueError, match="flops must be finite and at least 0"):
        roofline_ms(float("nan"), 1, "t4")
    with pytest.raises(ValueError, match="device must be one of v100-pcie, .* got 'abacus'"):
        device("abacus")


def test_operators_are_bound_one_by_one():
    machine = Device("toy", "float32", 1e3, 1e3, 0, "a test")  # one operation or one byte per millisecond
    work = [Operator("products", 50, 1, 2), Operator("moves", 10, 8, 4)]
    assert operators_ms(work, machine, bytes_per_value=4) == pytest.approx(50 + 48)
    assert machine.bytes_per_value == 4 and device("h100").bytes_per_value == 2
    assert operators_ms([], machine) == 0
    # 2 x 3 values into 3 x 5: 60 operations, 15 weights, 6 values in and 10 out.
    assert product("linear", 2, 3, 5) == Operator("linear", 60, 15, 16)
    # Two samples, 3 queries, 4 keys, all 12 pairs, 2 heads of 5 that share one of keys.
    whole, = attention(2, 3, 4, 12, 2, 1, 5, True)
    assert whole == Operator("attention", 2 * 2 * 2 * 12 * 2 * 5, 0, 2 * (2 * 3 * 2 * 5 + 2 * 4 * 5))
    steps = attention(2, 3, 4, 12, 2, 1, 5, False)
    assert sum(step.flops for step in steps) == whole.flops
    assert sum(step.moved for step in steps) == whole.moved + 4 * 2 * 12 * 2  # scores written, read; twice


def test_experts_that_no_token_takes_are_not_read():
    moe = DecoderShape(1, 8, 8, 1, 1, 8, 8, experts=16, experts_per_token=2, expert_mlp=4)
    for rows, hit in ((1, 2), (3, 6), (9, 16)):
        weights = [one.weights for one in decoder_operators(moe, [rows], [rows])[0] if one.name == "experts"]
        assert weights == [hit * 8 * 4] * 3


@pytest.mark.parametrize("lengths, tera, milliseconds, tolerance", [
    ([644] * 32, 8.6, 81, 0.025), ([644] * 27 + [0] * 5, 7.2, 69, 0.025), ([644] * 19 + [0] * 13, 5.1, 49, 0.025),
    ([644] * 2 + [356] * 30, 4.9, 47, 0.01)], ids=["whole", "27 layers", "19 layers", "fastv"])
def test_the_roofline_reproduces_the_published_milliseconds_of_adallava(lengths, tera, milliseconds, tolerance):
    """LLaVA-1.5-7B on a V100 at 112 TFLOP/s and 900 GB/s, decoder alone, 644 tokens, no flash attention, every step
    through memory. It moves less for an activation than its width asks (the hidden size, not the MLP's) and for a
    residual sum (one input): 1.3 ms less in the whole model."""
    layers = decoder_operators(LLAVA.decoder, lengths, lengths, fused=False)
    work = [one for layer in layers for one in layer]
    assert flops_of(work) == pytest.approx(tera * 1e12, rel=1e-2)
    assert operators_ms(work, "v100") == pytest.approx(milliseconds, rel=tolerance)


@pytest.mark.parametrize("length, tera, milliseconds", [(698, 9.3, 88.6), (70, 0.91, 15.3)])
def test_the_roofline_reproduces_the_published_milliseconds_of_prumerge(length, tera, milliseconds):
    """The same analysis in LLaVA-PruMerge, whole and pruned, where reading the weights is what takes the time. It
    gives no length: these are the ones that make its FLOPs."""
    work = [one for layer in decoder_operators(LLAVA.decoder, [length] * 32, [length] * 32, fused=False)
            for one in layer]
    assert flops_of(work) == pytest.approx(tera * 1e12, rel=2e-3)
    assert operators_ms(work, "v100") == pytest.approx(milliseconds, rel=0.0125)


def test_every_device_names_its_dtype_and_source():
    for entry in DEVICES.values():
        assert entry.dtype in ("float16", "bfloat16") and "NVIDIA" in entry.source
        assert 1e13 < entry.flops_per_s < 1e16 and 1e11 < entry.bytes_per_s < 1e13 and entry.memory_bytes >= 16e9


def test_table_has_one_row_per_budget_in_order():
    rows = table(LLAVA, [64, 576, 192], 60, on="h100-sxm")
    assert [row.keep for row in rows] == [64, 576, 192]
    assert [row.sequence for row in rows] == [124, 636, 252]
    assert rows[1].prefill_share == rows[1].kv_share == 1
    assert rows[0].prefill_flops == prefill_flops(LLAVA, 576, 64, 60).total
    assert rows[0].kv_share == pytest.approx(124 / 636)
    for row in rows:
        assert row.prefill_roofline_ms >= row.prefill_flops / 989.4e9
    # One token's decode is bound by reading the decoder's 6738939904 weights, less an embedding table of 32064 x 4096
    # of which it reads one row, and the cache of 124 tokens; activations are few.
    bound = (2 * (6738939904 - 32064 * 4096) + 124 * 2**19) / 3.35e9
    assert rows[0].decode_roofline_ms == pytest.approx(bound, rel=2e-3) and rows[0].decode_roofline_ms > bound


def test_table_prices_pruning_inside_the_decoder():
    before, inside = table(LLAVA, [64], 60)[0], table(LLAVA, [64], 60, prune_layer=2)[0]
    assert before.prefill_flops < inside.prefill_flops and before.kv_bytes < inside.kv_bytes
    assert before.prefill_roofline_ms is None and before.decode_roofline_ms is None
    with pytest.raises(ValueError, match="keeps must name at least one budget"):
        table(LLAVA, [], 60)


def test_the_table_counts_every_stage_and_says_the_mean_over_layers():
    row, all_in = table(LLAVA, [72, 576], 60, stages=lambda k: ((8, 4 * k), (16, 2 * k), (24, k)) if k < 576 else ())
    assert row.layer_mean == 270 and row.keep == 72 and row.sequence == 132 and all_in.layer_mean == 576
    assert row.kv_bytes == pytest.approx(all_in.kv_bytes * (270 + 60) / (576 + 60))
    assert table(LLAVA, [64], 60)[0].layer_mean == 64
    assert table(LLAVA, [64], 60, prune_layer=2)[0].layer_mean == 64 + 2 * 512 / 32
