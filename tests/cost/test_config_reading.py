"""Configurations of all kinds: published models, families beside the supported ones, and what is refused."""

import pytest
import torch
import transformers as t
from families import PINPOINTS, TEXT, TOWER, config_of
from torch.utils.flop_counter import FlopCounterMode

from budgetprune.cost import (
    KNOWN,
    DecoderShape,
    decode_flops_per_token,
    decoder_flops,
    kv_bytes,
    parameters,
    prefill_flops,
    see,
    shape_of,
    tower_flops,
)
from budgetprune.evaluation.shape import shape_of as shape_of_name

IMAGE = 100


def counted(call):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = call()
    return counter.get_total_flops(), out


def eager(cls, config):
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return cls(config).eval()


@pytest.mark.parametrize("name, count", [
    ("qwen2-vl-2b", 2208985600), ("qwen2-vl-7b", 8291375616), ("qwen2.5-vl-3b", 3754622976),
    ("qwen2.5-vl-7b", 8292166656), ("qwen3-vl-8b", 8767123696), ("qwen3-vl-30b-a3b", 31070754032),
    ("paligemma-3b-224", 2923466480)])
def test_known_models_have_the_parameters_of_their_checkpoints_to_the_last_one(name, count):
    """As others have counted them after loading the checkpoints, and as the hub gives them for the files."""
    assert sum(parameters(KNOWN[name]).values()) == count


@pytest.mark.parametrize("name, billions", [
    ("llava-1.5-7b", 7.06), ("llava-1.5-13b", 13.35), ("llava-next-7b", 7.06), ("llava-next-13b", 13.35),
    ("llava-next-mistral-7b", 7.57), ("llava-onevision-7b", 8.03), ("internvl3-8b", 7.94), ("paligemma2-3b-448", 3.03)])
def test_other_known_models_have_the_size_on_their_model_cards(name, billions):
    assert round(sum(parameters(KNOWN[name]).values()) / 1e9, 2) == billions


def test_nothing_is_assumed_of_known_models():
    assert not any(shape.notes for shape in KNOWN.values())


def siglip_with_head():
    vision = t.SiglipVisionConfig(**{**TOWER, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3})
    return t.LlavaForConditionalGeneration, t.LlavaConfig(
        vision_config=vision, text_config=t.LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full")


def gemma3():
    text = t.Gemma3TextConfig(**{**TEXT, "num_hidden_layers": 7}, head_dim=24, sliding_window=8)
    return t.Gemma3ForConditionalGeneration, t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False), text_config=text, mm_tokens_per_image=4,
        image_token_index=IMAGE)


def paligemma2():
    text = t.Gemma2Config(**TEXT, head_dim=24, sliding_window=8)
    return t.PaliGemmaForConditionalGeneration, t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**TOWER, vision_use_head=False, projection_dim=64), text_config=text,
        image_token_id=IMAGE, projection_dim=64)


def idefics3():
    return t.Idefics3ForConditionalGeneration, t.Idefics3Config(
        vision_config=t.models.idefics3.Idefics3VisionConfig(**TOWER), text_config=t.LlamaConfig(**TEXT),
        image_token_id=IMAGE, scale_factor=2, pad_token_id=0)


def deepseek():
    return t.DeepseekVLForConditionalGeneration, t.DeepseekVLConfig(
        vision_config=t.SiglipVisionConfig(**TOWER), text_config=t.LlamaConfig(**TEXT), image_token_id=IMAGE)


def mixtral():
    """Experts in LLaVA, and a plain MLP in its tower."""
    text = t.MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2)
    return t.LlavaForConditionalGeneration, t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**TOWER), text_config=text, image_token_id=IMAGE)


@pytest.mark.parametrize("make", [siglip_with_head, gemma3, paligemma2, idefics3, deepseek,
                                  mixtral])
def test_models_beside_the_families_cost_what_torch_counts(make):
    model = eager(*make())
    if make is mixtral:
        model.set_experts_implementation("eager")
    shape = shape_of(model.config)
    n = shape.tokens_per_crop
    ids = torch.tensor([[1, 5] + [IMAGE] * n + [6, 7, 8]])
    pixels = torch.randn(1, 3, 28, 28)
    inputs = {"pixel_values": pixels[:, None] if make is idefics3 else pixels}
    if make in (gemma3, paligemma2):
        inputs["token_type_ids"] = (ids == IMAGE).int() if make is gemma3 else torch.zeros_like(ids)
    truth, out = counted(lambda: model(input_ids=ids, **inputs, logits_to_keep=1, use_cache=True))
    assert prefill_flops(shape, n, n, 5).total == pytest.approx(truth, rel=2e-3)
    stored = [layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers]
    assert kv_bytes(shape.decoder, n + 5, bytes_per_value=4) == stored
    assert shape.decoder.prefix_lm == (make is paligemma2)
    assert sum(parameters(shape).values()) == sum(p.numel() for p in model.parameters())
    assert bool(shape.notes) == (make is deepseek)
    if make is deepseek:
        assert shape.notes == ("model type deepseek_vl: its projector is taken as two layers, 1 x 1 patches to a "
                               "token",)


@pytest.mark.parametrize("text", [
    t.Gemma2Config(**{**TEXT, "num_hidden_layers": 3}, head_dim=16, sliding_window=6),
    t.MistralConfig(**TEXT, sliding_window=6), t.PhiConfig(**TEXT), t.Starcoder2Config(**TEXT, sliding_window=None),
    t.Qwen2MoeConfig(**TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
                     shared_expert_intermediate_size=40, decoder_sparse_step=2),
], ids=lambda text: text.model_type)
def test_decoders_of_all_forms_cost_what_torch_counts(text):
    model = eager(t.AutoModelForCausalLM.from_config, text)
    if text.model_type == "qwen2_moe":
        model.set_experts_implementation("eager")
    decoder = DecoderShape.from_config(text)
    head = 2 * decoder.hidden * decoder.vocab
    truth, out = counted(lambda: model(input_ids=torch.arange(20)[None] + 2, logits_to_keep=1, use_cache=True))
    # The gate of Qwen2-MoE's shared expert is one column more.
    gate = 2 * decoder.hidden * 2 * 20 if text.model_type == "qwen2_moe" else 0
    assert decoder_flops(decoder, 20) + head + gate == pytest.approx(truth, rel=2e-3)
    held = out.past_key_values
    stored = [layer.keys.nbytes + layer.values.nbytes for layer in held.layers]
    assert stored == kv_bytes(decoder, 20, bytes_per_value=4)
    step, _ = counted(lambda: model(input_ids=torch.tensor([[7]]), past_key_values=held, use_cache=True))
    shape = KNOWN["llava-1.5-7b"]
    found = decode_flops_per_token(type(shape)(shape.tower, decoder), 21)
    assert found + gate // 20 == pytest.approx(step, rel=2e-3)


def test_a_window_spares_pairs_where_causal_ones_are_counted():
    decoder = DecoderShape(1, 1, 1, 1, 1, 1, 1, windows=(3,))
    linear = 5 * (4 + 3)  # five tokens; four attention matrices and three of the MLP, all of one value
    assert decoder_flops(decoder, 5, attention="causal") == 2 * (linear + 2 * (1 + 2 + 3 + 3 + 3))
    assert decoder_flops(decoder, 5) == 2 * (linear + 2 * 25)
    prefix = DecoderShape(1, 1, 1, 1, 1, 1, 1, prefix_lm=True)
    assert decoder_flops(prefix, 5, attention="causal") == decoder_flops(prefix, 5)


@pytest.mark.parametrize("grids", [[(1, 4, 6)], [(2, 8, 6)], [(1, 6, 10), (1, 4, 4)]])
def test_windows_of_any_picture_and_of_videos_cost_what_torch_counts(grids):
    model = eager(*config_of("qwen2_5_vl"))
    shape, grid = shape_of(model.config), torch.tensor(grids)
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 7 * 7)
    truth, _ = counted(lambda: model.model.get_image_features(pixels, grid))
    tokens = int(grid.prod(1).sum()) // 4
    found = prefill_flops(shape, tokens, tokens, 1, grids=grids)
    assert found.vision + found.projector == truth
    assert found.vision == tower_flops(shape.tower, grids)


def test_a_video_is_as_many_crops_as_frames():
    """LLaVA-OneVision projects all patches of every frame and then pools them: 2 x 2 of 4 x 4, and one row end."""
    model = eager(*config_of("llava_onevision"))
    frames = torch.randn(1, 3, 3, 28, 28)
    truth, out = counted(lambda: model.model.get_video_features(
        frames, vision_feature_layer=-1, vision_feature_select_strategy="full"))
    found = prefill_flops(shape_of(model.config), 3 * 4 + 1, 3 * 4 + 1, 5, crops=3)
    assert found.vision + found.projector == truth


def test_a_packed_picture_without_its_grid_is_near_a_square():
    shape = KNOWN["qwen2.5-vl-7b"]
    assert prefill_flops(shape, 12, 12, 1) == prefill_flops(shape, 12, 12, 1, grids=[(1, 6, 8)])
    assert prefill_flops(shape, 7, 7, 1) == prefill_flops(shape, 7, 7, 1, grids=[(1, 2, 14)])
    assert prefill_flops(shape, 0, 0, 1).vision == 0


def test_crops_and_tokens_of_a_picture_are_those_of_the_processors():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    class Images:
        image_grid_pinpoints = [list(pin) for pin in KNOWN["llava-next-7b"].tiling.pinpoints]

    old, new = object.__new__(LlavaNextProcessor), object.__new__(LlavaOnevisionProcessor)
    old.image_processor, old.patch_size, old.num_additional_image_tokens = Images(), 14, 0
    new.image_processor, new.num_image_tokens, new.vision_aspect_ratio = Images(), 729, "anyres_max_9"
    old_shape, new_shape, tiles = (KNOWN[name] for name in ("llava-next-7b", "llava-onevision-7b", "internvl3-8b"))
    for height, width in ((672, 672), (300, 700), (1080, 1920), (37, 911), (333, 334), (2000, 500), (1, 1)):
        assert see(old_shape, height, width).tokens == old._get_number_of_features(height, width, 336, 336)
        new.image_processor.image_grid_pinpoints = [list(pin) for pin in new_shape.tiling.pinpoints]
        assert see(new_shape, height, width).tokens == new._get_number_of_features(height, width, 384, 384)
        grid = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        number = grid[0] * grid[1]
        assert see(tiles, height, width) == (256 * (number + (number > 1)), number + (number > 1), None)
    assert see(old_shape, 672, 672) == (2928, 5, None)
    assert see(KNOWN["qwen2.5-vl-7b"], 1792, 1792) == (4096, None, ((1, 128, 128),))
    assert see(KNOWN["paligemma-3b-224"], 1000, 30) == (256, 1, None)


def test_a_folder_is_read_with_its_class_defaults_and_without_a_class_by_its_json(tmp_path):
    import json

    config = config_of("internvl")[1]
    config.save_pretrained(tmp_path)
    assert shape_of_name(tmp_path) == shape_of(config)
    bare = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "nobody_knows_it"}
    (tmp_path / "config.json").write_text(json.dumps(bare))
    shape = shape_of_name(tmp_path)
    assert shape.tokens_per_crop == 4 and "nobody_knows_it: its projector is taken as two layers, 2 x 2" in (
        shape.notes[-1])


def llava_json(vision=None, text=None, **more):
    config = config_of("llava")[1].to_dict() | more
    return config | {"vision_config": config["vision_config"] | (vision or {}),
                     "text_config": config["text_config"] | (text or {})}


@pytest.mark.parametrize("config, match", [
    (t.LlamaConfig(**TEXT).to_dict(), "config.vision_config must be there: llama is no vision-language model"),
    (llava_json(text={"num_hidden_layers": None}), "config.text_config must have num_hidden_layers, it has none; a"),
    (llava_json(text={"hidden_size": "4096"}), "config.text_config.hidden_size must be a positive int, got '4096'"),
    (llava_json(vision={"image_size": [28, 14]}), r"config.vision_config.image_size must be .* got \[28, 14\]"),
    (llava_json(vision={"depths": [2, 2]}), "config.vision_config.depths means a tower in stages"),
    (llava_json(text={"kv_lora_rank": 512}), "config.text_config.kv_lora_rank means latent attention, which is not"),
    (llava_json(text={"layer_types": ["linear_attention"] * 4}), r"layer_types must be .* got \['linear_attention'\]"),
    (llava_json(text={"layer_types": ["full_attention"]}), "once for each of 4 layers: no other kind .* got 1"),
    (llava_json(text={"num_experts": 4, "num_experts_per_tok": 8}), r"experts_per_token must be in \[1, 4\]"),
    (llava_json(model_type="llava_onevision", image_grid_pinpoints=PINPOINTS, vision_aspect_ratio="pad"),
     "config.vision_aspect_ratio must end in a number, as anyres_max_9 does, got 'pad'"),
])
def test_what_is_missing_or_of_another_form_is_named(config, match):
    with pytest.raises(ValueError, match=match):
        shape_of(config)


@pytest.mark.parametrize("name, arguments, match", [
    ("llava-1.5-7b", {"grids": [(1, 4, 4)]}, "grids must be None for a tower that sees crops"),
    ("qwen2-vl-7b", {"crops": 1}, "crops must be None for a tower that packs images"),
    ("qwen2-vl-7b", {"grids": [(1, 4, 4)]}, "grids must give image_tokens_in, 576, tokens of 2 x 2 patches, got 4"),
    ("qwen2-vl-7b", {"grids": [(48, 48)]}, r"grids must hold \(frames, rows, columns\) of patches, got \(48, 48\)"),
])
def test_what_the_encoder_sees_has_to_fit_it(name, arguments, match):
    with pytest.raises(ValueError, match=match):
        prefill_flops(KNOWN[name], 576, 64, 60, **arguments)
    with pytest.raises(ValueError, match="must see images in crops of one size"):
        str(KNOWN["qwen2-vl-7b"].tokens_per_crop)
