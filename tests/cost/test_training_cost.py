"""What training costs, by formula, against what autograd keeps, what is counted, and what must hold."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import make_model
from saved_bytes import bytes_kept

import budgetprune
from budgetprune.cost import KNOWN, VlmShape, decoder_flops, prefill_flops
from budgetprune.cost.training import (
    kept_bytes,
    lora_kept_bytes,
    lora_parameters,
    pruner_parameters,
    training_cost,
    training_flops,
)

ROOT = Path(__file__).resolve().parents[2]
LLAVA = KNOWN["llava-1.5-7b"]
LENGTH = 20


def tiny(layers=2, kv_heads=4):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                              image_size=28, patch_size=7, projection_dim=16)
    text = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=172, num_hidden_layers=layers,
                       num_attention_heads=4, num_key_value_heads=kv_heads)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=100))


def inputs_of(dtype):
    ids = torch.tensor([[1] + [100] * 16 + [5, 6, 7]] * 2)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(ids == 100, -100),
            "pixel_values": torch.randn(2, 3, 28, 28).to(dtype)}


def training(layers, dtype, checkpointing=False, kv_heads=4):
    model = tiny(layers, kv_heads).to(dtype).requires_grad_(False)
    budgetprune.prune(model, "adaptive", keep=5)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


@pytest.mark.parametrize("dtype, kv_heads", [(torch.float32, 4), (torch.bfloat16, 4), (torch.float32, 2)])
def test_a_layer_keeps_the_bytes_of_the_formula(dtype, kv_heads):
    two, four = (training(layers, dtype, kv_heads=kv_heads) for layers in (2, 4))
    shape = VlmShape.from_config(two.config).decoder
    grown = bytes_kept(four, inputs_of(dtype)) - bytes_kept(two, inputs_of(dtype))
    assert grown == 2 * kept_bytes(shape, 2 * LENGTH, bytes_per_value=dtype.itemsize)


@pytest.mark.parametrize("dtype, kv_heads", [(torch.float32, 2), (torch.bfloat16, 4)])
def test_lora_keeps_its_own_inputs_beside(dtype, kv_heads):
    from peft import LoraConfig, get_peft_model

    from budgetprune.training.loop import LORA_TARGETS

    models = [training(layers, dtype, kv_heads=kv_heads) for layers in (2, 4)]
    shape = VlmShape.from_config(models[0].config).decoder
    two, four = (bytes_kept(get_peft_model(model, LoraConfig(r=3, target_modules=LORA_TARGETS)).train(),
                            inputs_of(dtype)) for model in models)
    wide = {"bytes_per_value": dtype.itemsize}
    assert four - two == 2 * (kept_bytes(shape, 2 * LENGTH, **wide) + lora_kept_bytes(shape, 2 * LENGTH, 3, **wide))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpointed_layer_keeps_its_input_alone(dtype):
    two, four = (bytes_kept(training(layers, dtype, checkpointing=True), inputs_of(dtype)) for layers in (2, 4))
    assert four - two == 2 * (2 * LENGTH * 64 * dtype.itemsize)


def test_parameters_are_those_that_train():
    from peft import LoraConfig, get_peft_model

    from budgetprune.training.loop import LORA_TARGETS

    for model in (tiny(), make_model("qwen2_5_vl")):
        budgetprune.prune(model, "adaptive", keep=5)
        own = sum(p.numel() for p in model.budget_pruner.parameters())
        assert pruner_parameters(VlmShape.from_config(model.config)) == own
    model = tiny(kv_heads=2)
    shape = VlmShape.from_config(model.config).decoder
    model = get_peft_model(model, LoraConfig(r=3, target_modules=LORA_TARGETS))
    assert lora_parameters(shape, 3) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_matrix_products_of_a_step_are_counted():
    """With LoRA, and gradients as far as the embeddings, as every layer but the first hands them on: the linear layers
    by torch's counter; gates replace attention by an op that it does not know, of which the formula says the rest.
    The tower's own attention, which has another name there, and the controller are within the 3 %."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    from budgetprune.training.loop import LORA_TARGETS

    model = training(2, torch.float32)
    shape, inputs = VlmShape.from_config(model.config), inputs_of(torch.float32)
    lora = get_peft_model(model, LoraConfig(r=3, target_modules=LORA_TARGETS))
    lora.train()
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    with FlopCounterMode(display=False) as counter:
        lora(**inputs).loss.backward()
    linear = decoder_flops(shape.decoder, LENGTH)
    attention = 2 * 2 * 2 * LENGTH * LENGTH * 64  # two layers, scores and values
    counted = sum(count for op, count in counter.get_flop_counts()["Global"].items()
                  if "mm" in str(op) or "convolution" in str(op))
    ours = training_flops(shape, 2, 16, 4, lora_rank=3, checkpointing=False) - 2 * 3 * attention
    assert linear > attention and counted == pytest.approx(ours, rel=0.03)


def test_checkpointing_adds_a_forward_of_the_decoder_and_frozen_parts_have_no_backward():
    kept, again = (training_flops(LLAVA, 3, 576, 100, checkpointing=c) for c in (False, True))
    assert again - kept == 3 * decoder_flops(LLAVA.decoder, 676)
    forward = prefill_flops(LLAVA, 576, 576, 100, logits="all").total * 3
    assert 1.9 * forward < kept < 2.2 * forward, "three forwards would be those of a model that trains"
    assert training_flops(LLAVA, 1, 576, 100, projector=True) > training_flops(LLAVA, 1, 576, 100)


def test_what_is_divided_shrinks_with_the_devices_and_the_rest_does_not():
    run = {"batch": 128, "micro_batch": 4, "lora_rank": 64}
    one, ddp, zero2, zero3, fsdp = (
        training_cost(LLAVA, "a100-80g", gpus=gpus, strategy=strategy, **run) for gpus, strategy in
        ((1, "ddp"), (8, "ddp"), (8, "zero2"), (8, "zero3"), (8, "fsdp")))
    assert ddp.memory_bytes == one.memory_bytes and ddp.step_seconds == pytest.approx(one.step_seconds / 8)
    # DeepSpeed computes in two bytes beside a master of four: 16 bytes of a trained value, as everywhere.
    trained = one.gradients // 4
    assert zero2.weights == one.weights - 2 * trained and 8 * zero2.gradients == pytest.approx(2 * trained, abs=8)
    assert 8 * zero2.optimizer == 8 * zero3.optimizer == pytest.approx(12 * trained, abs=8)
    assert 8 * zero3.weights == pytest.approx(zero2.weights, abs=8)
    # Its bucket of half a billion values, and ZeRO-3's one billion gathered weights, two bytes each.
    assert (zero2.gathered, zero3.gathered) == (10**9, 3 * 10**9) and zero3.memory_bytes < zero2.memory_bytes
    assert 8 * fsdp.weights == pytest.approx(one.weights, abs=8) and one.gathered == 0 < fsdp.gathered
    assert {cost.activations for cost in (one, ddp, zero2, zero3, fsdp)} == {one.activations}
    assert {cost.step_flops for cost in (one, ddp, zero2, zero3, fsdp)} == {one.step_flops}
    # By hand: 7.06 billion frozen values in two bytes, 1.58 million of the pruner and 67.1 of LoRA in four.
    assert one.weights == pytest.approx(7.06e9 * 2 + 68.7e6 * 4, rel=2e-3)
    assert one.optimizer == 2 * one.gradients == pytest.approx(8 * 68.7e6, rel=1e-2)
    assert one.hours(256, 128) == pytest.approx(2 * one.step_seconds / 3600) == one.hours(129, 128)


@pytest.mark.parametrize("changes, match", [
    ({"gpus": 0}, "gpus must be at least 1"),
    ({"batch": 100, "gpus": 8}, "batch must be a multiple of gpus x micro_batch, 8 x 4, got 100"),
    ({"strategy": "tp"}, "strategy must be 'ddp' or 'zero2' or 'zero3' or 'fsdp', got 'tp'"),
    ({"mfu": 1.5}, r"mfu must be in \(0, 1\], got 1.5"), ({"on": "tpu"}, "device must be one of"),
])
def test_wrong_arguments_are_refused_by_name(changes, match):
    with pytest.raises(ValueError, match=match):
        training_cost(**{"shape": LLAVA, "on": "a100-80g", **changes})


def test_a_half_as_fast_device_takes_twice_the_time():
    from budgetprune.cost import device

    fast = device("a100-80g")
    slow = replace(fast, flops_per_s=fast.flops_per_s / 2)
    assert training_cost(LLAVA, slow).step_seconds == 2 * training_cost(LLAVA, fast).step_seconds


def test_the_estimates_of_the_page_are_those_of_the_formula(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import cluster_table

    page = cluster_table.PAGE.read_text()
    assert cluster_table.rendered(page) == page, "run python benchmarks/cluster_table.py"
    assert page.count("| llava-1.5-7b |") == 12 and "Estimated, not measured" in page
    for how in ("ddp", "zero2", "zero3", "fsdp"):
        assert f"| {how} |" in page
    for method in ("adaptive", "adaptive_query", "quecc", "resampler", "pooling_projector"):
        assert f"| `{method}`" in page
