"""One whole model at a time, checked and measured: the stock one, a pruned one, and FastV as it was published."""

import gc
import statistics
import time
from dataclasses import dataclass, field

import pytest
import torch
from full_models import MODELS, build
from prefill_cost import ideal_share, seen_flops
from prefill_watch import selection_timed, step_times, tokens_seen
from published_fastv import PublishedFastV

import budgetprune
from budgetprune.selectors.base import find

STOCK, PUBLISHED = "stock transformers", "FastV by output_attentions"
SLOW = 3  # seconds a prefill
LAYERS = {"cpu": 2, "cuda": None}
PREFILLS = {"cpu": 7, "cuda": 20}  # that a case takes about as long as


@dataclass(frozen=True)
class Case:
    device: str
    model: str
    B: int
    provider: str
    keep: int  # N for the stock model

    def __str__(self):
        return f"{self.device} {self.model} B={self.B} {self.provider} K={self.keep}"

    @property
    def method(self):
        return None if self.provider in (STOCK, PUBLISHED) else self.provider


@dataclass
class Stock:
    """The stock model as it was measured, and what a case beside it took."""

    logits: torch.Tensor
    prefill_ms: float | None
    flops: int
    case_seconds: float  # what the next case will take
    kept_all: set = field(default_factory=set)  # methods that were seen to be equal to it


class Workbench:
    """One model at a time, the stock figures of all, and the clock."""

    def __init__(self, seconds, variable=""):
        """seconds: for all cases together; variable: where the user can ask for more."""
        self.begin, self.seconds, self.variable = time.monotonic(), seconds, variable
        self.building, self.stocks, self.refused = 0.0, {}, {}
        self.name = self.model = self.family = None

    def fits(self, seconds, what):
        left = self.seconds - (time.monotonic() - self.begin)
        if seconds > left:
            pytest.skip(f"{what} takes about {seconds:.0f} s, {max(left, 0):.0f} s of {self.seconds:.0f} s are "
                        f"left ({self.variable})")

    def enter(self, case):
        """Builds the case's model unless it stands already; skips what this machine or this package does not serve."""
        if self.name == (case.model, case.device):
            return
        if case.model in self.refused:
            pytest.skip(self.refused[case.model])
        self.name = self.model = None
        gc.collect()
        real, layers = MODELS[case.model], LAYERS[case.device]
        try:
            from budgetprune.evaluation import measure
            from budgetprune.models.base import family_of

            self.measure = measure
            family_of(build(real, "meta", torch.bfloat16, layers))
            self.shape = real.shape(real.config(layers))
        except (ImportError, TypeError, ValueError) as error:
            self.refused[case.model] = f"{case.model}: {error}".replace("\n", " ")
            pytest.skip(self.refused[case.model])
        self.fits(self.building, f"building {case.model}")
        if case.device == "cuda":
            torch.cuda.empty_cache()
        begin = time.monotonic()
        self.model = build(real, case.device, torch.bfloat16, layers)
        self.building = time.monotonic() - begin
        self.family, self.real, self.layers = family_of(self.model), real, layers
        self.encoder_end = self.model.get_submodule(real.encoder_end)
        self.name = (case.model, case.device)
        batches = (1, 8) if case.device == "cuda" else (1,)
        self.inputs = {rows: real.inputs(rows, case.device, torch.bfloat16) for rows in batches}

    @torch.no_grad()
    def prefill(self, inputs):
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits

    def seen(self, inputs):
        """(logits, what every part read, seconds) of one prefill."""
        begin = time.monotonic()
        with tokens_seen(self.encoder_end, self.family.decoder(self.model)) as seen:
            logits = self.prefill(inputs)
        assert torch.isfinite(logits).all()
        return logits, seen, time.monotonic() - begin


def figures(benchmark, bench, inputs, once):
    """Prefill, decoding and memory of the model as it stands; the prefill's rounds are pytest-benchmark's."""
    gpu = inputs["input_ids"].is_cuda
    rounds = 7 if gpu else 3 if once < SLOW else 1
    def prefill():
        bench.prefill(inputs)
        if gpu:
            torch.cuda.synchronize()

    benchmark.pedantic(prefill, rounds=rounds, warmup_rounds=2 if gpu else 0)
    stats = benchmark.stats  # none under --benchmark-disable
    seconds = None if stats is None else stats.stats.median if gpu else stats.stats.min
    steps = step_times(bench.model, inputs, 12 if gpu else 4)
    return {"prefill_ms": seconds and 1e3 * seconds, "decode_ms": statistics.median(steps) if gpu else min(steps),
            "peak_bytes": bench.measure.peak_bytes(bench.model, inputs)}


def selection_ms(bench, place, inputs, once):
    """Of three prefills the middle on a GPU, the fastest on a CPU; of a single one where that takes long."""
    found = []
    for _ in range(3 if once < SLOW else 1):
        with selection_timed(bench.model, bench.encoder_end, bench.family.decoder(bench.model), place) as watch:
            bench.prefill(inputs)
        found.append(watch.milliseconds())
    return statistics.median(found) if inputs["input_ids"].is_cuda else min(found)


def stock(benchmark, bench, case, inputs):
    started, real = time.monotonic(), bench.real
    if case.device == "cuda":
        bench.prefill(inputs)  # loads kernels
    logits, seen, once = bench.seen(inputs)
    assert seen.lengths == [real.tokens + real.text] * bench.shape.decoder.layers
    bench.fits(PREFILLS[case.device] * once, f"{case}: {PREFILLS[case.device]} prefills")
    found = figures(benchmark, bench, inputs, once)
    flops = seen_flops(bench.shape, real, case.B, seen)
    bench.stocks[case.model, case.device, case.B] = Stock(logits, found["prefill_ms"], flops,
                                                          time.monotonic() - started)
    return found | {"flops": flops, "place": ""}


def expected_lengths(selector, real, keep, layers):
    """Columns that each decoder layer has to read: all until the method's first stage, then what each stage leaves."""
    stages = dict(selector.stages(real.tokens, keep, layers))
    image, lengths = real.tokens if selector.place == "llm" else keep, []
    for layer in range(layers):
        image = stages.get(layer, image)
        lengths.append(image + real.text)
    return lengths


def pruned(benchmark, bench, case, inputs, base):
    model, real, layers = bench.model, bench.real, bench.shape.decoder.layers
    options = {"layer": 1} if case.provider == "fastv" and layers <= 2 else {}
    selector = find(case.method)
    try:
        pruning = budgetprune.prune(model, case.method, keep=real.tokens, **options)
    except ValueError as error:  # a method that this model cannot serve, as one that needs CLS
        pytest.skip(f"{case.model}: {error}")
    with pruning:
        if case.method not in base.kept_all:
            assert torch.equal(bench.prefill(inputs), base.logits), f"{case.method} keeping all is not stock"
            base.kept_all.add(case.method)
        pruning.set_keep(case.keep)
        _, seen, once = bench.seen(inputs)
        assert pruning.plan.counts() == [case.keep] * case.B
        assert seen.lengths == expected_lengths(pruning.selector, real, case.keep, layers)
        found = figures(benchmark, bench, inputs, once)
        span = selection_ms(bench, selector.place, inputs, once)
        width = bench.shape.decoder.hidden if selector.place == "llm" else bench.family.features(bench.model)[0]
        own = pruning.selector.flops(real.tokens, width, case.keep)
    share = found["prefill_ms"] and span / found["prefill_ms"]
    return found | {"flops": seen_flops(bench.shape, real, case.B, seen, own), "place": selector.place,
                    "selection_ms": span, "selection_share": share}


def published(benchmark, bench, case, inputs):
    layer = min(2, bench.shape.decoder.layers - 1)
    with budgetprune.prune(bench.model, "fastv", keep=case.keep, layer=layer) as pruning:
        bench.prefill(inputs)
        ours = set(pruning.plan.kept[0].tolist())
    with PublishedFastV(bench.model, bench.real.first, bench.real.tokens, case.keep, layer) as fastv:
        given = inputs | fastv.arguments
        _, seen, once = bench.seen(given)
        image = {n - bench.real.first for n in fastv.kept.tolist()} & set(range(bench.real.tokens))
        assert len(image) == case.keep and seen.lengths[-1] == case.keep + bench.real.text
        agree = len(image & ours)  # its scores are rounded to bfloat16, ours are not
        assert agree >= 0.9 * case.keep, f"only {agree} of {case.keep} tokens are those that fastv keeps"
        found = figures(benchmark, bench, given, once)
    return found | {"flops": seen_flops(bench.shape, bench.real, case.B, seen), "place": ""}


def measured(benchmark, bench, case):
    """All figures of a case, those that compare it with the stock model included; a case that does not fit is skipped.

    Of a run without timing (--benchmark-disable) the figures that need time are None.
    """
    inputs, key = bench.inputs[case.B], (case.model, case.device, case.B)
    started = time.monotonic()
    try:
        if case.provider == STOCK:
            found = stock(benchmark, bench, case, inputs)
        elif key not in bench.stocks:
            pytest.skip(f"{case}: the stock model was not measured, so there is no ideal to compare with")
        elif case.provider == PUBLISHED:
            bench.fits(2 * bench.stocks[key].case_seconds, str(case))
            found = published(benchmark, bench, case, inputs)
        else:
            bench.fits(bench.stocks[key].case_seconds, str(case))
            found = pruned(benchmark, bench, case, inputs, bench.stocks[key])
    except torch.OutOfMemoryError:
        pytest.skip(f"{case}: does not fit into the GPU's memory")
    base = bench.stocks[key]
    if case.method:
        base.case_seconds = 1.5 * (time.monotonic() - started)  # the next budget may be a larger one
    timed = found["prefill_ms"] is not None and base.prefill_ms is not None
    share = ideal_share(base.prefill_ms, found["prefill_ms"], base.flops, found["flops"]) if timed else None
    return {"selection_ms": None, "selection_share": None, "stock_prefill_ms": base.prefill_ms,
            "stock_flops": base.flops, "ideal_share": share, **found}
