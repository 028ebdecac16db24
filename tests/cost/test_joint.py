"""One budget for tokens and layers: counted as torch counts it, never exceeded, never wasted."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from tiny import make_batch, make_llava
from torch.utils.flop_counter import FlopCounterMode

import budgetprune
from budgetprune.cost import (
    KNOWN,
    VlmShape,
    joint_budget,
    joint_flops,
    joint_frontier,
    joint_roofline_ms,
    prefill_flops,
    table,
)

LLAVA = KNOWN["llava-1.5-7b"]
SMALL = replace(LLAVA, decoder=replace(LLAVA.decoder, layers=6))


@torch.no_grad()
@pytest.mark.parametrize("keep, layers", [(16, 4), (5, 2), (9, 3)])
def test_joint_flops_agree_with_the_flop_counter(keep, layers):
    model, batch = make_llava("eager", kv_heads=4), make_batch(text=(4, 4), padding="left")
    shape = VlmShape.from_config(model.config)
    with budgetprune.prune(model, "uniform", keep=keep), \
            budgetprune.prune_depth(model, budget=layers, prefix=1) as depth:
        with FlopCounterMode(display=False) as counter:
            model(**batch, logits_to_keep=1)
        own = 2 * depth.scheduler.flops()
    assert counter.get_total_flops() == joint_flops(shape, keep, layers, 7, batch=2).total + own


def test_all_layers_without_a_latency_token_are_the_prefill_itself():
    for keep in (1, 64, 576):
        assert joint_flops(LLAVA, keep, 32, 50, latency_tokens=0) == prefill_flops(LLAVA, 576, keep, 50)


def test_the_roofline_of_all_layers_is_that_of_the_prefill_and_a_skipped_layer_takes_its_part_away():
    plain, = table(LLAVA, [64], 50, on="h100")
    times = [joint_roofline_ms(LLAVA, 64, layers, 50, "h100", latency_tokens=0) for layers in (32, 31, 16)]
    assert times[0] == pytest.approx(plain.prefill_roofline_ms)
    assert times[0] - times[2] == pytest.approx(16 * (times[0] - times[1]))
    # By hand: few tokens read a layer's weights once, 2 bytes of each of 202 million at 3.35 TB/s.
    few = [joint_roofline_ms(LLAVA, 1, layers, 1, "h100", latency_tokens=0) for layers in (32, 31)]
    assert few[0] - few[1] == pytest.approx(1e3 * 2 * (4 * 4096**2 + 3 * 4096 * 11008) / 3.35e12, rel=0.01)
    assert joint_roofline_ms(LLAVA, 64, 16, 50, "h100", batch=4) > times[2]
    with pytest.raises(ValueError, match="layers must be"):
        joint_roofline_ms(LLAVA, 64, 33, 50, "h100")


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.77, 1.0])
def test_the_frontier_pays_for_all_it_names_and_for_nothing_more(share):
    frontier = joint_frontier(SMALL, share, 50, prefix=2)
    full = prefill_flops(SMALL, 576, 576, 50).total
    for pair in frontier:
        assert pair.flops == joint_flops(SMALL, pair.keep, pair.layers, 50).total <= share * full
        assert pair.share == pair.flops / full
        assert pair.keep == 576 or joint_flops(SMALL, pair.keep + 1, pair.layers, 50).total > share * full
    paid = [(k, n) for k, n in product(range(1, 577), range(2, 7))
            if joint_flops(SMALL, k, n, 50).total <= share * full]
    best = {(k, n) for k, n in paid if not any(a >= k and b >= n and (a, b) != (k, n) for a, b in paid)}
    assert {(pair.keep, pair.layers) for pair in frontier} == best


def test_policies_give_up_what_they_say_first():
    tokens, layers, balanced = (joint_budget(LLAVA, 0.6, 50, prefix=16, policy=p)
                                for p in ("tokens", "layers", "balanced"))
    assert tokens.layers == 32 and tokens.keep < 350 and layers.keep == 576 and layers.layers < 20
    assert tokens.keep < balanced.keep < 576 and 16 < balanced.layers < 32
    assert abs(balanced.keep / 576 - balanced.layers / 32) < 0.05
    tight = joint_budget(LLAVA, 0.15, 50, prefix=16, policy="tokens", least_keep=30)
    assert tight.layers < 32 and tight.keep >= 30, "layers go only where least_keep do not fit"


def test_a_table_of_accuracies_is_asked_for_the_best_pair_that_is_paid_for():
    full = prefill_flops(LLAVA, 576, 576, 50).total
    table = {(576, 32): 0.99, (288, 16): 0.7, (200, 24): 0.8, (100, 32): 0.8, (90, 32): 0.8, (576, 12): 0.9}
    found = joint_budget(LLAVA, int(0.4 * full), 50, prefix=16, accuracy=table)
    assert (found.keep, found.layers, found.accuracy) == (90, 32, 0.8), "the cheapest of equals"
    assert joint_budget(LLAVA, 0.5, 50, prefix=12, accuracy=table).accuracy == 0.9
    with pytest.raises(ValueError, match=r"accuracy must hold a pair that .* FLOPs pay for"):
        joint_budget(LLAVA, 0.1, 50, prefix=16, accuracy=table)


@pytest.mark.parametrize("arguments, error, match", [
    ({"flops": 1e12}, ValueError, r"flops must be in \[0, 2\], got 1000000000000.0"),
    ({"flops": True}, TypeError, "flops must be an int .* or a float"),
    ({"flops": 0.05}, ValueError, "flops must pay for 1 image tokens in 16 layers, .* of the full prefill"),
    ({"flops": 0.5, "policy": "x"}, ValueError, "policy must be one of 'balanced', 'tokens', 'layers', got 'x'"),
    ({"flops": 0.5, "prefix": 33}, ValueError, r"prefix must be in \[1, 32\], got 33"),
    ({"flops": 0.5, "least_keep": 577}, ValueError, r"least_keep must be in \[1, 576\], got 577"),
    ({"flops": 0.5, "accuracy": {}}, ValueError, "accuracy must hold at least one pair"),
    ({"flops": 0.5, "accuracy": {(4, 20): 2}}, ValueError, r"accuracy\[4, 20\] must be in \[0, 1\], got 2"),
])
def test_wrong_budgets_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        joint_budget(LLAVA, arguments.pop("flops"), 50, **{"prefix": 16, **arguments})
