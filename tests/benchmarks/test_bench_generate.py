"""The arithmetic and the instruments of benchmarks/bench_generate.py, on small models."""

import os
import pkgutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import prefill_watch
import pytest
import torch
from full_models import IMAGE_TOKEN, MODELS, RealModel
from generate_table import HEAD, generate_table
from prefill_cost import ideal_share, seen_flops
from prefill_goals import PrefillGoal
from prefill_watch import Seen, selection_timed, step_times, tokens_seen
from published_fastv import PublishedFastV
from report import markdown
from tiny import TOKENS, make_batch

import budgetprune
from budgetprune.cost import VlmShape, decoder_flops, known, prefill_flops, projector_flops, tower_flops
from budgetprune.models.base import family_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_ideal_is_time_that_falls_as_the_work_does():
    assert ideal_share(100, 50, 8e12, 4e12) == 1
    assert ideal_share(100, 100, 8e12, 4e12) == 0.5  # half the work, no time saved
    assert ideal_share(100, 25, 8e12, 4e12) == 2
    assert ideal_share(90, 100, 8e12, 8e12) == pytest.approx(0.9)  # the same work, slower
    with pytest.raises(ValueError, match="flops"):
        ideal_share(1, 1, 1, 0)


@pytest.mark.parametrize("kept, layer", [(576, None), (64, None), (64, 2)])
def test_flops_of_what_was_seen_are_those_of_the_cost_model(kept, layer):
    shape, real, seen = known("llava-1.5-7b"), MODELS["llava-1.5-7b"], Seen()
    early = layer or 0
    seen.lengths = [576 + real.text] * early + [kept + real.text] * (32 - early)
    seen.projected = 8 * (kept if layer is None else 576)
    expected = prefill_flops(shape, 576, kept, real.text, prune_layer=layer, batch=8, attention="causal",
                             selector_flops=7).total
    assert seen_flops(shape, real, 8, seen, selector_flops=7) == expected
    seen.lengths[-1] += 1
    assert seen_flops(shape, real, 8, seen, selector_flops=7) > expected


def test_a_packed_model_costs_its_encoder_what_the_decoder_read_and_one_token_of_the_head():
    shape, real, seen = known("qwen2.5-vl-7b"), MODELS["qwen2.5-vl-7b"], Seen()
    seen.lengths = [100] * shape.decoder.layers
    head = 2 * shape.decoder.hidden * shape.decoder.vocab
    encoder = tower_flops(shape.tower, [(1, 128, 128)]) + projector_flops(shape, 4096)
    expected = 3 * (encoder + 7 + head + decoder_flops(shape.decoder, 100, attention="causal"))
    assert seen_flops(shape, real, 3, seen, selector_flops=7) == expected


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b", "llava-next-7b"])
def test_configurations_are_of_the_published_sizes(name):
    assert VlmShape.from_config(MODELS[name].config(None)) == known(name)
    cut = VlmShape.from_config(MODELS[name].config(2))
    assert (cut.decoder.layers, cut.tower.layers, cut.decoder.hidden) == (2, 2, known(name).decoder.hidden)


@pytest.mark.parametrize("name", MODELS)
def test_prompts_hold_the_tokens_that_are_counted(name):
    real = MODELS[name]
    inputs = real.inputs(2, "cpu", torch.float32)
    is_image = inputs["input_ids"] == real.image_token
    assert is_image.sum(1).tolist() == [real.tokens] * 2 and inputs["input_ids"].shape == (2, real.tokens + real.text)
    assert bool(is_image[:, real.first].all()) and not bool(is_image[:, real.first - 1].any())


def test_next_s_token_count_is_that_of_transformers():
    """Row ends and unpadding: what the stock model makes of the picture, in a model of little width."""
    from transformers import AutoModelForImageTextToText

    real = MODELS["llava-next-7b"]
    config = real.config(2)
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size, part.num_attention_heads = 16, 16, 2
    config.text_config.num_key_value_heads, config.text_config.head_dim = 2, 8
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    inputs = real.inputs(1, "cpu", torch.float32)
    with torch.no_grad():  # transformers compares placeholders and features itself
        assert model(**inputs, logits_to_keep=1).logits.shape[:2] == (1, 1)


@pytest.mark.parametrize("method, keep, lengths, projected", [
    (None, None, [24] * 4, 2 * 16), ("uniform", 5, [13] * 4, 2 * 5), ("prumerge", 5, [13] * 4, 2 * 5),
    ("fastv", 5, [24, 24, 13, 13], 2 * 16)])
def test_what_each_part_reads_is_seen(llava, method, keep, lengths, projected):
    inputs = make_batch((5, 5))
    if method:
        budgetprune.prune(llava, method, keep=keep)
    family = family_of(llava)
    for _ in range(2):  # the first leaves no hook behind
        with tokens_seen(llava.model.multi_modal_projector, family.decoder(llava)) as seen, torch.no_grad():
            llava(**inputs)
        assert (seen.lengths, seen.projected) == (lengths, projected)


class Clock:
    """Time that passes only where `slow` says so: exact on a machine that is busy."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    @contextmanager
    def slow(self, owner, name="forward", seconds=1.0):
        """A call that takes `seconds`; a function of a module of Python, or the forward of one of torch."""
        real = getattr(owner, name)

        def late(*args, **kwargs):
            self.now += seconds
            return real(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, late)
            yield


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(prefill_watch, "time", clock)
    return clock


PARTS = {"vision": [("budgetprune.models.encode.shrink", 10)],
         "llm": [("budgetprune.models.stages.DecoderState.__call__", 10)]}


@pytest.mark.parametrize("method, place", [("uniform", "vision"), ("prumerge", "vision"), ("fastv", "llm")])
def test_selection_s_time_is_the_method_s_and_nobody_else_s(llava, clock, method, place):
    """Each part of the pruning takes another time, so that the sum says which were counted, and how often."""
    family = family_of(llava)
    budgetprune.prune(llava, method, keep=5)
    selector = type(llava.budget_pruner.selector)
    with ExitStack() as stack:
        for module in (llava.model.vision_tower, llava.model.multi_modal_projector, family.decoder(llava).layers[0].mlp,
                       family.decoder(llava).layers[-1].self_attn, llava.lm_head):
            stack.enter_context(clock.slow(module, seconds=1000))
        stack.enter_context(clock.slow(selector, "plan", 1))
        for part, seconds in PARTS[place]:
            owner, name = part.rsplit(".", 1)
            stack.enter_context(clock.slow(pkgutil.resolve_name(owner), name, seconds))
        projector, decoder = llava.model.multi_modal_projector, family.decoder(llava)
        with selection_timed(llava, projector, decoder, place) as watch, torch.no_grad():
            llava(**make_batch((5, 5)))
    assert watch.milliseconds() == 1000 * 11


def test_a_watch_that_saw_nothing_says_so(llava):
    family = family_of(llava)
    with selection_timed(llava, llava.model.multi_modal_projector, family.decoder(llava), "llm") as watch:
        assert not watch.spans
    with pytest.raises(ValueError, match="no part of the pruning"):
        watch.milliseconds()


@pytest.mark.parametrize("method", [None, "uniform", "fastv"])
def test_steps_are_those_of_decoding(llava, clock, method):
    if method:
        budgetprune.prune(llava, method, keep=5)
    with clock.slow(llava.model.vision_tower, seconds=100), clock.slow(llava.lm_head):  # the tower: prefill only
        assert step_times(llava, make_batch((5, 5)), 3) == [1000.0] * 3


@pytest.mark.parametrize("keep", [1, 6, TOKENS])
def test_published_fastv_is_fastv(llava, keep):
    inputs = make_batch((5,))
    stock = llava(**inputs, logits_to_keep=1).logits
    first = (inputs["input_ids"][0] == 100).nonzero()[0].item()
    with budgetprune.prune(llava, "fastv", keep=keep) as pruning, torch.no_grad():
        ours = llava(**inputs, logits_to_keep=1).logits
        kept = list(range(TOKENS)) if pruning.plan is None else pruning.plan.kept[0].tolist()
        tokens = llava.generate(**inputs, do_sample=False, max_new_tokens=4)
    with PublishedFastV(llava, first, TOKENS, keep, 2) as fastv, torch.no_grad():
        theirs = llava(**inputs, **fastv.arguments, logits_to_keep=1).logits
        assert [n - first for n in fastv.kept.tolist() if first <= n < first + TOKENS] == kept
        assert torch.equal(llava.generate(**inputs, **fastv.arguments, do_sample=False, max_new_tokens=4), tokens)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert torch.equal(llava(**inputs, logits_to_keep=1).logits, stock)


def entry(provider="uniform", place="vision", share=0.9, selection=0.002, **other):
    info = {"op": "generate", "case": "prefill", "shape": "llava-1.5-7b B=8 K=64", "dtype": "bfloat16", "on": "cuda",
            "provider": provider, "place": place, "layers": None, "ideal_share": share, "selection_share": selection,
            "model": "llava-1.5-7b", "B": 8, "keep": 64, "prefill_ms": 25.0, "decode_ms": 3.0, "peak_bytes": 2**31,
            "flops": 2 * 10**12, "stock_prefill_ms": 100.0, "stock_flops": 9 * 10**12, "device": "a GPU",
            "torch": "2", "cuda": "13", "commit": "abc", "threads": 2}
    return {"extra_info": info | other}


def test_goals_are_held_to_the_worst_method_they_are_meant_for():
    goal = PrefillGoal("llava-1.5-7b", 8, 64, "ideal_share", 0.85, place="vision")
    good, bad = entry(share=0.9), entry("prumerge", share=0.8)
    assert goal.measured([good]) == ("90.0% (uniform)", True)
    assert goal.measured([good, bad]) == ("80.0% (prumerge)", False)
    others = [entry("fastv", "llm", 0.5), entry("stock transformers", "", 0.1), entry(share=0.1, layers=2),
              entry(share=0.1, on="cpu"), entry(share=0.1, dtype="float32"), entry(share=0.1, op="gather_tokens"),
              entry(share=0.1, shape="llava-1.5-7b B=1 K=64"), entry(share=None)]
    assert goal.measured([*others, good]) == ("90.0% (uniform)", True) and goal.measured(others) is None


@pytest.mark.parametrize("share, said", [
    (1 / 1.02, ("2.0%", True)), (1 / 1.05, ("5.0%", False)), (1.1, ("-9.1%", True))])
def test_overhead_is_the_time_over_the_ideal_one(share, said):
    goal = PrefillGoal("llava-1.5-7b", 8, 64, "overhead", 0.03, provider="fastv")
    assert goal.measured([entry("fastv", "llm", share), entry(share=0.2)]) == said


def test_the_selection_s_goal_holds_for_every_method():
    goal = PrefillGoal("llava-1.5-7b", 8, 64, "selection_share", 0.01)
    assert goal.measured([entry(selection=0.004), entry("fastv", "llm", selection=0.008)]) == ("0.8% (fastv)", True)
    assert goal.measured([entry(selection=0.02), entry("fastv", "llm", selection=0.008)]) == ("2.0% (uniform)", False)
    with pytest.raises(ValueError, match="figure"):
        PrefillGoal("llava-1.5-7b", 8, 64, "share", 0.01)


def test_the_table_has_every_figure():
    stock = entry("stock transformers", "", 1.0, None, keep=576, prefill_ms=100.0, flops=9 * 10**12)
    lines = generate_table([stock, entry()], "2026-01-01").splitlines()
    assert lines[2].count("|") == len(HEAD) + 1 == lines[3].count("|") == lines[4].count("|") == lines[5].count("|")
    assert lines[4].startswith("| llava-1.5-7b | 8 | stock transformers | all 576 | 100.0 |")
    assert lines[5] == "| llava-1.5-7b | 8 | uniform | 64 | 25.0 | 3.00 | 2.00 | 2.000 | 0.2% | 4.00x | 4.50x | 90.0% |"
    assert markdown({"benchmarks": [entry()], "datetime": "2026-01-01T"}).splitlines()[-1] == lines[5]


def test_without_transformers_every_case_says_why(tmp_path):
    (tmp_path / "transformers.py").write_text("raise ImportError('none of it here')\n")
    given = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "BUDGETPRUNE_BENCH_DEVICES": "cpu"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "benchmarks/bench_generate.py"], cwd=ROOT, env=given,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "none of it here" in done.stdout, done.stdout + done.stderr
    assert " passed" not in done.stdout


def test_a_model_s_budgets_are_llava_s():
    assert MODELS["llava-1.5-7b"].keeps == (64, 128, 192)
    assert RealModel("x", None, None, tokens=900, crops=1, text=8).keeps == (100, 200, 300)
    assert MODELS["llava-1.5-7b"].image_token == IMAGE_TOKEN
