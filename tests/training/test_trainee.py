"""What a method asks of a training run: its formulas against models that are really trained for a step."""

import pytest
import torch
from families import FAMILIES, config_of, make_inputs, make_model
from saved_bytes import bytes_kept
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import budgetprune
from budgetprune.cost import KNOWN, VlmShape, decoder_flops
from budgetprune.cost.training import (
    Trainee,
    activation_bytes,
    projector_kept_bytes,
    tower_kept_bytes,
    training_cost,
    training_flops,
)
from budgetprune.training.trainee import trainee

LLAVA = KNOWN["llava-1.5-7b"]
IDS = torch.tensor([[1] + [100] * 16 + [5, 6, 7]] * 2)  # a question of two words, an answer of one
METHODS = [("adaptive", {}), ("adaptive", {"fusion": "encoder"}), ("adaptive", {"gate": "features"}),
           ("adaptive", {"gate": "noise"}), ("adaptive", {"conditioning": "cross", "hidden_dim": 16}),
           ("adaptive_query", {}), ("adaptive_query", {"fusion": "encoder", "conditioning": "dot"}),
           ("quecc", {"heads": 4}), ("resampler", {}), ("pooling_projector", {}),
           ("pooling_projector", {"layer": "mlp", "train_projector": False})]


def names(case):
    return " ".join([case[0], *map(str, case[1].values())])


def llava(siglip=False, blocks=3, attention="sdpa"):
    """Whose tower is read at its last layer, so that all of it has a gradient where it has one."""
    cls, config = config_of("llava_siglip" if siglip else "llava")
    config.vision_config.num_hidden_layers, config.vision_feature_layer = blocks, -1
    config._attn_implementation = attention
    return cls(config).requires_grad_(False)


def inputs(dtype=torch.float32):
    return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS.masked_fill(IDS != 7, -100),
            "pixel_values": torch.randn(2, 3, 28, 28).to(dtype)}


def trained(method, options, keep=4, **kwargs):
    """(model in training, its shape, what the formula says of the method)."""
    model = llava(**kwargs)
    fixed = method in budgetprune.compressors()
    budgetprune.prune(model, method, keep=keep, train_keep=None if fixed else (keep, keep), **options)
    shape = VlmShape.from_config(model.config)
    return model.train(), shape, trainee(method, shape, keep=keep, text_tokens=3, bytes_per_value=4, **options)


@pytest.mark.parametrize("case", METHODS, ids=names)
def test_parameters_and_operations_are_those_that_torch_counts(case):
    """Forward and backward of two samples, attention in plain products, and gradients as far as the embeddings, as
    every layer but the first hands them on. Gated attention is an op of ours that the counter does not know."""
    model, shape, asked = trained(*case, attention="eager")
    assert asked.parameters == sum(p.numel() for p in model.budget_pruner.parameters())
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs()).loss.backward()
    ours = training_flops(shape, 2, 16, 4, checkpointing=False, trainee=asked)
    if asked.tokens is None and model.budget_pruner.selector.acts_on == "attention":
        ours -= 2 * 3 * 2 * 2 * shape.decoder.layers * 20 * 20 * 64
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.002)


@pytest.mark.parametrize("case", METHODS, ids=names)
def test_bytes_that_autograd_keeps_are_those_of_the_formulas(case):
    """Beside layers and blocks, which are held to the byte elsewhere: the first layer's norm and some masks differ, and
    small things are large in a small model."""
    model, shape, asked = trained(*case)
    kept = 2 * ((16 if asked.tokens is None else asked.tokens) + 4)
    ours = activation_bytes(shape, 2, kept // 2, checkpointing=False, bytes_per_value=4,
                            tower_rows=18 if asked.in_tower else 0)
    ours += 2 * asked.activations + projector_kept_bytes(
        shape, kept - 8, trained=asked.own_projector, through=asked.through_features, bytes_per_value=4)
    ours += 2 * 4 * kept * shape.decoder.vocab  # logits, and their softmax for the loss
    assert bytes_kept(model, inputs()) == pytest.approx(ours, rel=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_block_of_clip_s_tower_keeps_the_bytes_of_the_formula_where_the_budget_enters_it(dtype, checkpointing):
    sizes = []
    for blocks in (3, 5):
        model = llava(blocks=blocks).to(dtype)
        budgetprune.prune(model, "adaptive", keep=4, fusion="encoder")
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        sizes.append(bytes_kept(model.train(), inputs(dtype)))
    tower = VlmShape.from_config(model.config).tower
    block = 36 * 32 * dtype.itemsize if checkpointing else tower_kept_bytes(tower, 36, bytes_per_value=dtype.itemsize)
    assert sizes[1] - sizes[0] == 2 * block


@pytest.mark.parametrize("family, exact", [("qwen2_vl", True), ("qwen2_5_vl", True), ("qwen3_vl", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_of_qwen_s_tower_keeps_them_too_and_gelu_less(family, exact, dtype):
    sizes = []
    for depth in (2, 4):
        cls, config = config_of(family)
        config.vision_config.depth = depth
        config.vision_config.fullatt_block_indexes = list(range(depth))
        config.vision_config.deepstack_visual_indexes = [0, 1]
        model = cls(config).to(dtype).requires_grad_(False)
        budgetprune.prune(model, "adaptive", keep=3, fusion="encoder")
        batch = {name: value.to(dtype) if value.is_floating_point() else value
                 for name, value in make_inputs(family, model)[0].items()}
        sizes.append(bytes_kept(model.train(), {**batch, "labels": batch["input_ids"].clone()}))
    rows = len(batch["pixel_values"]) + len(batch["image_grid_thw"])
    tower = VlmShape.from_config(model.config).tower
    less = 0 if exact else rows * tower.mlp * dtype.itemsize
    assert (sizes[1] - sizes[0]) / 2 == tower_kept_bytes(tower, rows, bytes_per_value=dtype.itemsize) - less


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["adaptive", "adaptive_query"])
def test_parameters_are_those_of_every_family(family, method):
    for fusion in ("post",) if family == "internvl" else ("post", "encoder"):
        model = make_model(family)
        budgetprune.prune(model, method, keep=3, fusion=fusion)
        asked = trainee(method, VlmShape.from_config(model.config), image_tokens=16, fusion=fusion)
        assert asked.parameters == sum(p.numel() for p in model.budget_pruner.parameters())


def test_a_budget_in_the_tower_costs_its_way_back_and_a_question_its_reading():
    post, inside = (trainee("adaptive", LLAVA, fusion=fusion) for fusion in ("post", "encoder"))
    blind, seeing = (training_cost(LLAVA, "h100", trainee=asked) for asked in (post, inside))
    forward = 2 * 24 * 577 * (4 * 1024**2 + 2 * 1024 * 4096)  # of the tower's matrices
    assert seeing.step_flops - blind.step_flops > 128 * 2 * forward, "a backward, and a forward again"
    # By hand: the inputs of 24 blocks, 4 samples of 578 tokens in two bytes, and what the projector's GELU is given.
    assert seeing.activations - blind.activations == pytest.approx(
        24 * 4 * 578 * 1024 * 2 + 4 * 576 * 4096 * 2, rel=0.01)
    asked = trainee("quecc", LLAVA, keep=16, text_tokens=50)
    assert asked.asked == decoder_flops(LLAVA.decoder, 50) and asked.own_projector and asked.tokens == 16
    assert asked.parameters > 1024 * 4096 + 4096 * 4096, "the copy of the projector"
    short = training_cost(LLAVA, "h100", trainee=asked)
    assert short.step_flops < blind.step_flops / 2 and short.logits < blind.logits / 3


def test_a_trained_projector_has_its_weights_gradients_and_inputs():
    asked = trainee("adaptive", LLAVA)
    less, more = (training_cost(LLAVA, "h100", trainee=asked, projector=projector) for projector in (False, True))
    values = 1024 * 4096 + 4096 * 4096 + 2 * 4096
    assert more.gradients - less.gradients == 4 * values and more.weights - less.weights == 2 * values
    assert more.activations - less.activations == 4 * 4 * 576 * (1024 + 4096 + 4096)


@pytest.mark.parametrize("method, options, match", [
    ("visionzip", {}, "method must be a trained one, visionzip is not"),
    ("quecc", {}, "keep must be given for quecc"), ("quecc", {"keep": 7}, "keep must be 144, 64, 36, 16, 9, 4, 1"),
    ("adaptive", {"gate": "features", "keep": 600}, r"keep must be in \[1, 576\], got 600"),
    ("adaptive", {"bytes_per_value": 1}, "bytes_per_value must be 2 or 4, got 1"),
    ("adaptive", {"colour": 1}, "colour"), ("nothing", {}, "unknown method"),
])
def test_what_cannot_be_trained_is_refused_by_name(method, options, match):
    with pytest.raises(ValueError, match=match):
        trainee(method, LLAVA, **options)


def test_a_compressor_needs_its_place_and_no_second_projector():
    with pytest.raises(ValueError, match="resampler stands between tower and projector"):
        trainee("resampler", KNOWN["qwen2.5-vl-7b"], keep=16, image_tokens=256)
    with pytest.raises(ValueError, match="projector must be False"):
        training_cost(LLAVA, "h100", projector=True, trainee=Trainee(1, own_projector=True))
