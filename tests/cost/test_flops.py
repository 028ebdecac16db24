"""FLOPs of a VLM against torch's own counter, hand arithmetic and published figures."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from budgetprune.cost import (
    KNOWN,
    DecoderShape,
    TowerShape,
    VlmShape,
    decode_flops_per_token,
    decoder_flops,
    known,
    prefill_flops,
    projector_flops,
    tower_flops,
)

IMAGE = 100
LLAVA = KNOWN["llava-1.5-7b"]


def llava(odd=False, **options):
    """A random LLaVA; `odd` has grouped queries, a head size that is not hidden / heads, and 9 patches."""
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                              image_size=28, patch_size=7)
    text = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                       num_attention_heads=4, num_key_value_heads=4)
    if odd:
        vision = CLIPVisionConfig(hidden_size=30, intermediate_size=50, num_hidden_layers=3, num_attention_heads=3,
                                  image_size=23, patch_size=7)
        text = LlamaConfig(vocab_size=131, hidden_size=54, intermediate_size=77, num_hidden_layers=3,
                           num_attention_heads=6, num_key_value_heads=2, head_dim=10)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE,
                         vision_feature_select_strategy="default", **{"vision_feature_layer": -2, **options})
    # The CPU's fused attention has no formula in torch's counter; eager attention is the same two products.
    config._attn_implementation = "eager"
    return LlavaForConditionalGeneration(config).eval()


def counted(call):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("options", [{}, {"odd": True}, {"odd": True, "vision_feature_layer": [-2, -1]}],
                         ids=["tiny", "odd", "two_feature_layers"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("logits", ["last", "all"])
def test_prefill_flops_agree_with_the_flop_counter(options, batch, logits):
    model = llava(**options)
    shape = VlmShape.from_config(model.config)
    patches, text = shape.tokens_per_crop, 7
    ids = torch.tensor([[1] * 3 + [IMAGE] * patches + [5] * (text - 3)] * batch)
    pixels = torch.randn(batch, 3, *[model.config.vision_config.image_size] * 2)
    truth = counted(lambda: model(input_ids=ids, pixel_values=pixels, logits_to_keep=int(logits == "last")))
    found = prefill_flops(shape, patches, patches, text, batch=batch, logits=logits)
    assert found.total == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("kept", [1, 4, 8])
def test_pruned_prefill_flops_agree_with_the_flop_counter(odd, kept):
    model, text = llava(odd), 6
    shape = VlmShape.from_config(model.config)
    pixels = torch.randn(1, 3, *[model.config.vision_config.image_size] * 2)
    ids = torch.tensor([[1, 2, 3] + [IMAGE] * kept + [5] * (text - 3)])

    def run():
        vision = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = model.model.multi_modal_projector(vision[:, :kept])
        embeds = model.get_input_embeddings()(ids.clamp(max=99))
        model(inputs_embeds=embeds.masked_scatter((ids == IMAGE)[..., None], features), logits_to_keep=1)

    found = prefill_flops(shape, shape.tokens_per_crop, kept, text)
    assert found.total == pytest.approx(counted(run), rel=1e-3)
    later = prefill_flops(shape, shape.tokens_per_crop, kept, text, projected="all")
    assert later.total - found.total == projector_flops(shape, shape.tokens_per_crop - kept)


def test_pruning_at_layer_k_agrees_with_layers_counted_one_by_one():
    model, kept, text = llava(odd=True), 2, 5
    shape = VlmShape.from_config(model.config)
    language, tokens = model.model.language_model, shape.tokens_per_crop
    lengths = [tokens + text] * 2 + [kept + text]

    def run():
        for layer, length in zip(language.layers, lengths, strict=True):
            hidden, ids = torch.randn(1, length, shape.decoder.hidden), torch.arange(length)[None]
            layer(hidden, position_embeddings=language.rotary_emb(hidden, ids), attention_mask=None)

    found = prefill_flops(shape, tokens, kept, text, prune_layer=2)
    assert found.decoder == pytest.approx(counted(run), rel=1e-3)
    assert found.projector == projector_flops(shape, tokens)


def test_several_stages_agree_with_layers_counted_one_by_one():
    model, text = llava(odd=True), 5
    shape = VlmShape.from_config(model.config)
    language, tokens = model.model.language_model, shape.tokens_per_crop
    lengths = [6 + text, 4 + text, 1 + text]

    def run():
        for layer, length in zip(language.layers, lengths, strict=True):
            hidden, ids = torch.randn(1, length, shape.decoder.hidden), torch.arange(length)[None]
            layer(hidden, position_embeddings=language.rotary_emb(hidden, ids), attention_mask=None)

    found = prefill_flops(shape, tokens, 6, text, stages=((1, 4), (2, 1)))
    assert found.decoder == pytest.approx(counted(run), rel=1e-3)
    assert found.projector == projector_flops(shape, 6)


def test_one_stage_costs_what_pruning_at_its_layer_costs():
    staged = prefill_flops(LLAVA, 576, 576, 60, stages=((2, 64),))
    assert staged == prefill_flops(LLAVA, 576, 64, 60, prune_layer=2)
    assert prefill_flops(LLAVA, 576, 192, 60, stages=((2, 64),)).total < staged.total


def test_pruning_at_the_first_and_past_the_last_layer_are_the_two_ends():
    assert prefill_flops(LLAVA, 576, 64, 60, prune_layer=0).decoder == prefill_flops(LLAVA, 576, 64, 60).decoder
    assert prefill_flops(LLAVA, 576, 64, 60, prune_layer=32) == prefill_flops(LLAVA, 576, 576, 60)


def test_a_new_token_costs_what_the_flop_counter_says():
    model = llava(odd=True)
    shape, decoder = VlmShape.from_config(model.config), model.model.language_model
    with torch.no_grad():
        cache = decoder(input_ids=torch.ones(2, 11, dtype=torch.long), use_cache=True).past_key_values
    step = torch.ones(2, 1, dtype=torch.long)
    truth = counted(lambda: model(input_ids=step, past_key_values=cache, use_cache=True))
    assert decode_flops_per_token(shape, 12, batch=2) == pytest.approx(truth, rel=1e-3)
    assert decode_flops_per_token(shape, [12, 12, 5]) < decode_flops_per_token(shape, 12)


def test_hand_arithmetic_on_a_model_of_ones():
    shape = VlmShape(TowerShape(1, 1, 1, 1, image_size=2, patch_size=1, channels=1), DecoderShape(1, 1, 1, 1, 1, 1, 1))
    # 4 patches + class token: 4 patch products; 5 x (4 + 2) linear; 2 x 25 attention; 2 FLOPs each.
    assert tower_flops(shape.tower) == 2 * (4 + 30 + 50)
    # 3 tokens: 3 x (4 + 3) linear, 2 x 9 attention; causal 2 x 6.
    assert decoder_flops(shape.decoder, 3) == 2 * (21 + 18)
    assert decoder_flops(shape.decoder, 3, attention="causal") == 2 * (21 + 12)
    assert prefill_flops(shape, 4, 2, 1).head == 2
    assert prefill_flops(shape, 4, 2, 1, logits="all").head == 2 * 3
    assert prefill_flops(shape, 4, 2, 1, selector_flops=9, batch=2).selector == 18
    # A method inside the decoder gives its output back at the prompt's length: all 5 tokens are scored.
    assert prefill_flops(shape, 4, 4, 1, stages=((0, 2),), logits="all").head == 2 * 3
    assert prefill_flops(shape, 4, 4, 1, stages=((1, 2),), logits="all").head == 2 * 5
    # Two experts of width 2 for each token, of three that the router weighs, beside a shared one of width 3.
    moe = DecoderShape(2, 1, 5, 1, 1, 1, 1, experts=3, experts_per_token=2, expert_mlp=2, shared_mlp=3,
                       dense_layers=(1,))
    assert decoder_flops(moe, 1) == 2 * ((4 + 2 + 3 + 3 * (2 * 2 + 3)) + (4 + 2 + 3 * 5))
    plain = DecoderShape(1, 1, 5, 1, 1, 1, 1, gated=False)
    assert decoder_flops(plain, 1) == 2 * (4 + 2 + 2 * 5)


def test_llava_7b_reproduces_the_published_adallava_figures():
    """Convention: decoder layers only, 2 per multiply-add, full attention, 644 tokens; 8.6, 7.2 and 5.1 TFLOPs for
    32, 27 and 19 layers. Their analyzer adds norms and softmax, under 0.2 %."""
    assert decoder_flops(LLAVA.decoder, 644) == pytest.approx(8.56e12, rel=2e-3)
    assert decoder_flops(LLAVA.decoder, [644] * 27 + [0] * 5) == pytest.approx(7.2277e12, rel=2e-3)
    assert decoder_flops(LLAVA.decoder, [644] * 19 + [0] * 13) == pytest.approx(5.08e12, rel=2e-3)


def test_llava_7b_reproduces_the_published_pyramiddrop_figure():
    """Convention: decoder layers only, multiply-adds (half of FLOPs), three MLP matrices, 576 image tokens, no text."""
    assert decoder_flops(LLAVA.decoder, 576) / 2 == pytest.approx(3.82e12, rel=2e-3)


def test_llava_7b_prefill_lies_in_the_published_range():
    """Convention: everything that runs, about 60 text tokens; papers print 8.6 to 9.3 TFLOPs."""
    assert 8.6e12 < prefill_flops(LLAVA, 576, 576, 60).total < 9.3e12


def test_llava_7b_with_fastv_reproduces_the_figure_published_by_adallava():
    """Same convention as above; layer 2, half of 576 tokens: 4.9 TFLOPs."""
    lengths = [644] * 2 + [644 - 288] * 30
    assert decoder_flops(LLAVA.decoder, lengths) == pytest.approx(4.9e12, rel=1e-2)


def test_fastv_saves_what_its_readme_says():
    """K=3, half of 576 tokens dropped, 64 of text: 0.585 of the decoder (the README rounds to 57 %)."""
    full = prefill_flops(LLAVA, 576, 576, 64).decoder
    assert prefill_flops(LLAVA, 576, 288, 64, prune_layer=3).decoder / full == pytest.approx(0.585, abs=5e-3)


def test_flops_grow_with_every_size():
    totals = [prefill_flops(LLAVA, 576, kept, 60).total for kept in (0, 1, 64, 576)]
    assert totals == sorted(totals) and len(set(totals)) == 4
    assert prefill_flops(LLAVA, 0, 0, 60).vision == 0
    assert prefill_flops(LLAVA, 1152, 64, 60).vision == 2 * tower_flops(LLAVA.tower)
    assert prefill_flops(KNOWN["llava-next-7b"], 2928, 320, 60, crops=5).vision == 5 * tower_flops(LLAVA.tower)


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"kept": -1}, ValueError, "kept must be at least 0, got -1"),
    ({"kept": 1.5}, TypeError, "kept must be an int, got float"),
    ({"text_tokens": True}, TypeError, "text_tokens"),
    ({"image_tokens_in": 2928}, ValueError, "crops"),
    ({"prune_layer": 33}, ValueError, "prune_layer must be at most the number of layers, 32"),
    ({"prune_layer": 2, "kept": 600}, ValueError, "kept must be at most image_tokens_in"),
    ({"prune_layer": 2, "projected": "kept"}, ValueError, "projected"),
    ({"prune_layer": 2, "stages": ((3, 4),)}, ValueError, "prune_layer must be None with stages"),
    ({"stages": ((3, 65),)}, ValueError, r"stages must be .* never more than before \(64\), got \(3, 65\)"),
    ({"stages": ((3, 9), (2, 4))}, ValueError, "stages must be .* the layers ascending"),
    ({"stages": ((33, 9),)}, ValueError, "stages must be .* at most 32"),
    ({"batch": 0}, ValueError, "batch must be at least 1"),
    ({"logits": "some"}, ValueError, "logits must be 'last' or 'all'"),
    ({"attention": "half"}, ValueError, "attention must be"),
    ({"projected": "none"}, ValueError, "projected must be"),
])
def test_bad_arguments_are_named(change, error, words):
    arguments = {"image_tokens_in": 576, "kept": 64, "text_tokens": 60, **change}
    with pytest.raises(error, match=words):
        prefill_flops(LLAVA, **arguments)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="kv_heads"):
        DecoderShape(1, 8, 8, heads=3, kv_heads=2, head_dim=4, vocab=8)
    with pytest.raises(ValueError, match="TowerShape.layers must be a positive int, got 0"):
        TowerShape(0, 8, 8, 1, 8, 2)
    with pytest.raises(ValueError, match="one count per layer, 32, got 2"):
        decoder_flops(LLAVA.decoder, [1, 2])
    with pytest.raises(TypeError, match="lengths must be an int or a sequence"):
        decoder_flops(LLAVA.decoder, "32")
    with pytest.raises(ValueError, match="llava-1.5-7b, .* got 'gpt'"):
        known("gpt")


def test_cost_imports_the_standard_library_only():
    """In a bare interpreter without site-packages, the package's own __init__ replaced: only `cost` is judged."""
    code = ("import sys, types; package = types.ModuleType('budgetprune'); package.__path__ = ['budgetprune']; "
            "sys.modules['budgetprune'] = package; import budgetprune.cost; "
            "roots = {m.split('.')[0] for m in sys.modules} - {'budgetprune', '__main__'}; "
            "print(sorted(roots - sys.stdlib_module_names), 'budgetprune.cost.table' in sys.modules)")
    out = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True,
                         cwd=Path(__file__).parents[2]).stdout
    assert out.strip() == "[] True"
