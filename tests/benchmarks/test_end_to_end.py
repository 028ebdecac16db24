"""The cases of benchmarks/bench_generate.py, every registered method among them, on a very small model."""

from types import SimpleNamespace

import end_to_end
import pytest
import torch
from end_to_end import PUBLISHED, STOCK, Case, Workbench, measured
from full_models import RealModel
from tiny import IMAGE_TOKEN, TOKENS, make_llava

import budgetprune
from budgetprune.selectors.base import Selector, find

METHODS = [name for name in budgetprune.methods() if not find(name).trainable and name != "none"]


class Rounds:
    """pytest-benchmark's fixture, with a time that is given."""

    def __init__(self, seconds=1.0):
        self.stats = seconds and SimpleNamespace(stats=SimpleNamespace(median=seconds, min=seconds))

    def pedantic(self, call, rounds, warmup_rounds):
        for _ in range(rounds + warmup_rounds):
            call()


def images(rows, device, dtype, ids):
    return {"pixel_values": torch.randn(rows, 3, 28, 28, device=device, dtype=dtype)}


@pytest.fixture
def bench(monkeypatch):
    tiny = RealModel("tiny", lambda layers: make_llava().config, images, TOKENS, 1, 8, image_token=IMAGE_TOKEN)
    monkeypatch.setattr(end_to_end, "MODELS", {"tiny": tiny})
    bench = Workbench(600)
    bench.enter(Case("cpu", "tiny", 1, STOCK, TOKENS))
    return bench


def stock(bench, seconds=1.0):
    return measured(Rounds(seconds), bench, Case("cpu", "tiny", 1, STOCK, TOKENS))


@pytest.mark.parametrize("provider", [*METHODS, PUBLISHED])
def test_every_case_is_checked_and_has_all_figures(bench, provider):
    whole = stock(bench)
    assert whole["ideal_share"] == 1 and whole["selection_share"] is None
    found = measured(Rounds(0.5), bench, Case("cpu", "tiny", 1, provider, 4))
    assert 0 < found["flops"] < whole["flops"] == found["stock_flops"]
    assert found["ideal_share"] == pytest.approx(2 * found["flops"] / whole["flops"])
    assert found["peak_bytes"] > 0 and found["decode_ms"] > 0 and found["stock_prefill_ms"] == 1000
    if provider != PUBLISHED:
        assert found["selection_share"] == found["selection_ms"] / 500 > 0
    assert "budget_pruner" not in bench.model._modules


def test_without_timing_the_checks_run_all_the_same(bench):
    stock(bench, seconds=None)
    found = measured(Rounds(None), bench, Case("cpu", "tiny", 1, "uniform", 4))
    assert found["prefill_ms"] is None and found["ideal_share"] is None and found["flops"]


def test_a_method_that_keeps_another_count_is_not_timed(bench, monkeypatch):
    stock(bench)
    cls = find("uniform")
    plan = cls.plan
    monkeypatch.setattr(cls, "plan", lambda self, view, keep: plan(self, view, [max(1, k - 1) for k in keep]))
    rounds = Rounds()
    monkeypatch.setattr(rounds, "pedantic", lambda *args, **kwargs: pytest.fail("was timed"))
    with pytest.raises(AssertionError):
        measured(rounds, bench, Case("cpu", "tiny", 1, "uniform", 4))


def test_a_method_that_changes_the_model_with_all_tokens_is_not_timed(bench, monkeypatch):
    stock(bench)
    monkeypatch.setattr(find("uniform"), "plan", lambda self, view, keep: Selector.plan(self, view, [TOKENS - 1]))
    monkeypatch.setattr(find("uniform"), "score", lambda self, view: view.tokens.float().sum(-1))
    with pytest.raises(AssertionError, match="not stock"):
        measured(Rounds(), bench, Case("cpu", "tiny", 1, "uniform", 4))


def test_what_does_not_fit_says_how_long_it_takes(bench):
    stock(bench)
    bench.stocks["tiny", "cpu", 1].case_seconds = 1e4
    with pytest.raises(pytest.skip.Exception, match="takes about 10000 s, .* of 600 s are left"):
        measured(Rounds(), bench, Case("cpu", "tiny", 1, "uniform", 4))


def test_without_the_stock_model_there_is_no_case(bench):
    with pytest.raises(pytest.skip.Exception, match="the stock model was not measured"):
        measured(Rounds(), bench, Case("cpu", "tiny", 1, "uniform", 4))


def test_a_family_that_is_not_supported_gives_its_reason(bench, monkeypatch):
    from budgetprune.models import base

    def refuse(model):
        raise TypeError("model must be another one")

    monkeypatch.setattr(base, "family_of", refuse)
    bench.name = None
    for _ in range(2):  # the second without building it again
        with pytest.raises(pytest.skip.Exception, match="tiny: model must be another one"):
            bench.enter(Case("cpu", "tiny", 1, "uniform", 4))
        monkeypatch.setattr(end_to_end, "build", lambda *args: pytest.fail("was built again"))
