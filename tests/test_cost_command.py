"""`budgetprune cost`: what it prints, and every wrong turn."""


from functools import partial

import pytest
from families import config_of

from budgetprune.cost import KNOWN, operators_ms, prefill_flops, prefill_operators
from budgetprune.evaluation import Record, append


@pytest.fixture
def cost(words):
    """cost("llava-1.5-7b") -> (exit code, the words that were printed)."""
    return partial(words, "cost")


def test_budgets_are_shares_of_the_image_where_none_are_named(cost):
    code, said = cost()
    assert code == 0 and "llava-1.5-7b, 576 image and 64 text tokens, 2 x multiply-adds, 16-bit cache" in said
    for keep, flops in ((288, "5,018.3"), (144, "3,104.9"), (64, "2,051.3"), (32, "1,631.7")):
        assert f"│ {keep} │ {keep}.0 │ {keep + 64} │ {flops} │" in said
    assert "roofline" not in said and "│ 128 │" in cost("paligemma-3b-224")[1]


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_model_is_priced_for_a_picture(cost, name):
    code, said = cost(name, "--image", "1000x600", "--keep", 64)
    assert code == 0 and "│ 64 │ 64.0 │ 128 │" in said and "assumed" not in said


def test_rooflines_stand_beside_flops_and_say_that_they_are_not_measured(cost):
    code, said = cost("llava-1.5-7b", "--keep", 64, "--batch", 4, "--hardware", "h100")
    work = [one for part in prefill_operators(KNOWN["llava-1.5-7b"], 576, 64, 64, batch=4).values() for one in part]
    assert code == 0 and f"│ {operators_ms(work, 'h100'):,.2f} │" in said
    assert "roofline ms, not measured: H100 SXM 80 GB, bfloat16, 989.4 TFLOP/s and 3350 GB/s (NVIDIA H100" in said
    assert "4 prompts" in said


def test_pictures_give_crops_and_grids(cost):
    shape = KNOWN["qwen2.5-vl-7b"]
    code, said = cost("qwen2.5-vl-7b", "--image", "1120x560", "--keep", 100)
    flops = prefill_flops(shape, 800, 100, 64, grids=[(1, 40, 80)]).total
    assert code == 0 and "800 image and 64 text tokens" in said and f"{flops / 1e9:,.1f}" in said
    code, said = cost("llava-next-7b", "--image", "672x672", "--keep", 320)
    flops = prefill_flops(KNOWN["llava-next-7b"], 2928, 320, 64, crops=5).total
    assert code == 0 and "2928 image" in said and f"{flops / 1e9:,.1f}" in said


def test_no_figure_is_cut_off_in_a_narrow_terminal(cost, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, said = cost("qwen3-vl-30b-a3b", "--image", "1024x1024", "--keep", 256, "--hardware", "h200")
    assert code == 0 and "…" not in said
    assert "│ 256 │ 256.0 │ 320 │ 7,549.3 │ 59.9% │ 6.336 │ 30.00 │ 19.12 │ 1.28 │" in said


def test_a_folder_of_another_family_says_what_was_assumed(cost, tmp_path):
    from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig

    config_of("qwen3_vl_moe")[1].save_pretrained(tmp_path / "known")
    assert cost(tmp_path / "known", "--image", "140x140", "--keep", 9)[0] == 0
    VipLlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig()).save_pretrained(tmp_path / "other")
    code, said = cost(tmp_path / "other")
    assert code == 0 and "assumed: model type vipllava: its projector is taken as two layers, 1 x 1 patches" in said


@pytest.fixture
def run(tmp_path):
    full = prefill_flops(KNOWN["llava-1.5-7b"], 576, 576, 40).total
    for method, keep, ms, flops in (("none", 576, 80.0, full), ("fastv", 64, 60.0, full // 2)):
        append(tmp_path / "run" / "records.jsonl", Record("pope", "m", method, keep, 0.5, (0.4, 0.6), 10, 0,
                                                           prefill_ms=ms, prefill_flops=flops, latency_batch=1))
    return tmp_path / "run"


def test_a_run_is_held_to_what_its_flops_promised(cost, run):
    code, said = cost("--run", run)
    assert code == 0 and "│ pope │ fastv │ 64 │ 60.00 │ 75.0% │ 50.0% │ 1.50 │" in said
    assert "fastv: 1.50 times the share of the full model's time" in said and "roofline" not in said
    code, said = cost("llava-1.5-7b", "--run", run, "--hardware", "a100")
    assert code == 0 and "│ 50.0% │ 1.50 │ 33.7% │ 2.23 │" in said


@pytest.mark.parametrize("arguments, match", [
    (("--image", "big"), "image must be WIDTHxHEIGHT in pixels, such as 1024x768, got 'big'"),
    (("--image", "1024xlow"), "image must hold whole numbers, got 'low'"),
    (("--image", "0x5"), "width must be at least 1, got 0"),
    (("qwen3-vl-8b",), "image must be given as WIDTHxHEIGHT: qwen3-vl-8b takes images of any size"),
    (("qwen3-vl-8b", "--image", "64x64", "--keep", "5"), "keep must be at most 4, the image tokens of 64x64, got 5"),
    (("--hardware", "abacus"), "hardware must be this or one of v100-pcie, "),
    (("--batch", "0"), "batch must be at least 1, got 0"),
    (("--method", "uniform"), "method must act inside the decoder, uniform does not"),
    (("--run", "nowhere"), "run must have timed cells of the full model and of a method, nowhere has none"),
    (("--run", "nowhere", "--hardware", "h100"), "hardware must come with model, and model with hardware"),
])
def test_wrong_arguments_get_one_clear_line_and_exit_code_two(cost, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    code, said = cost(*arguments)
    assert code == 2 and match in said and "Traceback" not in said
