"""End to end at real sizes: prefill, decoding, memory, and how much of the ideal speed-up a method makes real.

On a GPU the published sizes in bfloat16, at batch 1 and 8; on the CPU two layers of them and a few cases. Weights are
random. A case is checked before it is timed: kept counts, finite logits, what every layer read, and that keeping all is
equal to the stock model to the bit. The stock model is timed in the same run, and the ideal is its time over the ratio
of FLOPs. A case that does not fit into BENCH_GENERATE_SECONDS is skipped and says so, as is a family that
budgetprune.prune does not support.
"""

import gc
import os
import statistics
import time
from dataclasses import dataclass, field

import pytest
import torch
from conftest import DEVICES
from full_models import MODELS, build
from prefill_cost import ideal_share, seen_flops
from prefill_watch import selection_timed, step_times, tokens_seen
from published_fastv import PublishedFastV

import budgetprune
from budgetprune.selectors.base import find

SECONDS = float(os.environ.get("BENCH_GENERATE_SECONDS", "600" if "cuda" in DEVICES else "75"))
STOCK, PUBLISHED = "stock transformers", "FastV by output_attentions"
SLOW = 1  # seconds a prefill
LAYERS = {"cpu": 2, "cuda": None}
PREFILLS = {"cpu": 5, "cuda": 20}  # that a case takes about as long as
METHODS = [name for name in budgetprune.methods() if not find(name).trainable and name != "none"]
METHODS.sort(key=lambda name: (name not in ("uniform", "prumerge", "fastv"), name))


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


def cases():
    """Every model at its smallest budget, LLaVA-1.5-7B in batches of 8 first, then the rest: the least needed last."""
    found = []
    if "cpu" in DEVICES:
        chosen = {"llava-1.5-7b": ["uniform", "prumerge", "fastv", PUBLISHED], "llava-1.5-13b": ["uniform"],
                  "llava-next-7b": ["uniform"], "qwen2.5-vl-7b": ["uniform"]}
        for name, providers in chosen.items():
            found.append(Case("cpu", name, 1, STOCK, MODELS[name].tokens))
            found += [Case("cpu", name, 1, provider, MODELS[name].keeps[0]) for provider in providers]
    if "cuda" in DEVICES:
        for budgets in (slice(0, 1), slice(1, None)):
            for name, real in MODELS.items():
                baselines = [PUBLISHED] if name.startswith("llava-1.5") else []
                for rows in (8, 1):
                    found += [Case("cuda", name, rows, STOCK, real.tokens)] if budgets.start == 0 else []
                    found += [Case("cuda", name, rows, provider, keep) for keep in real.keeps[budgets]
                              for provider in METHODS + baselines]
    return {str(case): case for case in found}


CASES = cases()


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

    def __init__(self):
        self.begin, self.building, self.stocks = time.monotonic(), 0.0, {}
        self.name = self.model = self.family = None

    def fits(self, seconds, what):
        left = SECONDS - (time.monotonic() - self.begin)
        if seconds > left:
            pytest.skip(f"{what} takes about {seconds:.0f} s, {max(left, 0):.0f} s of {SECONDS:.0f} s are left "
                        "(BENCH_GENERATE_SECONDS)")

    def enter(self, case):
        """Builds the case's model unless it stands already; skips what this machine or this package does not serve."""
        if self.name == (case.model, case.device):
            return
        self.name = self.model = None
        gc.collect()
        real, layers = MODELS[case.model], LAYERS[case.device]
        try:
            from budgetprune.cost import VlmShape
            from budgetprune.evaluation import measure
            from budgetprune.models.base import family_of

            self.measure = measure
            family_of(build(real, "meta", torch.bfloat16, layers))
            self.shape = VlmShape.from_config(real.config(layers))
        except (ImportError, TypeError, ValueError) as error:
            pytest.skip(f"{case.model}: {error}".replace("\n", " "))
        self.fits(self.building, f"building {case.model}")
        if case.device == "cuda":
            torch.cuda.empty_cache()
        begin = time.monotonic()
        self.model = build(real, case.device, torch.bfloat16, layers)
        self.building = time.monotonic() - begin
        self.family, self.real, self.layers = family_of(self.model), real, layers
        self.name = (case.model, case.device)
        batches = (1, 8) if case.device == "cuda" else (1,)
        self.inputs = {rows: real.inputs(rows, case.device, torch.bfloat16) for rows in batches}

    @torch.no_grad()
    def prefill(self, inputs):
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits

    def seen(self, inputs):
        """(logits, what every part read, seconds) of one prefill."""
        begin = time.monotonic()
        with tokens_seen(self.family.projector(self.model), self.family.decoder(self.model)) as seen:
            logits = self.prefill(inputs)
        assert torch.isfinite(logits).all()
        return logits, seen, time.monotonic() - begin


@pytest.fixture(scope="module")
def workbench():
    return Workbench()


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
        with selection_timed(bench.model, bench.family.projector(bench.model), bench.family.decoder(bench.model),
                             place) as watch:
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


def pruned(benchmark, bench, case, inputs, base):
    model, real, layers = bench.model, bench.real, bench.shape.decoder.layers
    options = {"layer": 1} if case.provider == "fastv" and layers <= 2 else {}
    selector = find(case.method)
    with budgetprune.prune(model, case.method, keep=real.tokens, **options) as pruning:
        if case.method not in base.kept_all:
            assert torch.equal(bench.prefill(inputs), base.logits), f"{case.method} keeping all is not stock"
            base.kept_all.add(case.method)
        pruning.set_keep(case.keep)
        _, seen, once = bench.seen(inputs)
        extra = int(getattr(pruning.selector, "use_cls", False))
        assert pruning.plan.counts() == [case.keep] * case.B
        assert seen.lengths[-1] == case.keep + extra + real.text
        early = getattr(pruning.selector, "layer", 0) if selector.place == "llm" else 0
        assert seen.lengths[:early] == [real.tokens + real.text] * early
        found = figures(benchmark, bench, inputs, once)
        span = selection_ms(bench, selector.place, inputs, once)
        width = bench.shape.decoder.hidden if selector.place == "llm" else bench.shape.tower.hidden
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


@pytest.mark.parametrize("case", CASES)
def bench_generate(benchmark, workbench, environment, case):
    case, bench = CASES[case], workbench
    bench.enter(case)
    inputs = bench.inputs[case.B]
    base = bench.stocks.get((case.model, case.device, case.B))
    if case.provider != STOCK:
        if base is None:
            pytest.skip(f"{case}: the stock model was not measured, so there is no ideal to compare with")
        bench.fits(base.case_seconds * (2 if case.provider == PUBLISHED else 1), str(case))
    started = time.monotonic()
    try:
        if case.provider == STOCK:
            found = stock(benchmark, bench, case, inputs)
            base = bench.stocks[case.model, case.device, case.B]
        elif case.provider == PUBLISHED:
            found = published(benchmark, bench, case, inputs)
        else:
            found = pruned(benchmark, bench, case, inputs, base)
    except torch.OutOfMemoryError:
        pytest.skip(f"{case}: does not fit into the GPU's memory")
    if case.method:  # the next budget may be a larger one
        base.case_seconds = 1.5 * (time.monotonic() - started)
    timed = found["prefill_ms"] is not None and base.prefill_ms is not None
    benchmark.extra_info.update(
        environment, op="generate", case="prefill", shape=f"{case.model} B={case.B} K={case.keep}", dtype="bfloat16",
        provider=case.provider, model=case.model, B=case.B, keep=case.keep, on=case.device, layers=bench.layers,
        device=torch.cuda.get_device_name() if case.device == "cuda" else environment["cpu"],
        sizes=[list(inputs["input_ids"].shape)], stock_prefill_ms=base.prefill_ms, stock_flops=base.flops,
        **{"selection_ms": None, "selection_share": None} | found,
        ideal_share=ideal_share(base.prefill_ms, found["prefill_ms"], base.flops, found["flops"]) if timed else None)
