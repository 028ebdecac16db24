"""End to end at real sizes: prefill, decoding, memory, and how much of the ideal speed-up a method makes real.

On a GPU the published sizes in bfloat16, at batch 1 and 8; on the CPU two layers of them and a few cases. Weights are
random. A case is checked before it is timed: kept counts, finite logits, what every layer read, and that keeping all is
equal to the stock model to the bit. The stock model is timed in the same run, and the ideal is its time over the ratio
of FLOPs. A case that does not fit into BENCH_GENERATE_SECONDS is skipped and says so, as is a family that
budgetprune.prune does not support.
"""

import os

import pytest
import torch
from conftest import DEVICES
from end_to_end import PUBLISHED, STOCK, Case, Workbench, measured
from full_models import MODELS

import budgetprune
from budgetprune.selectors.base import find

SECONDS = float(os.environ.get("BENCH_GENERATE_SECONDS", "600" if "cuda" in DEVICES else "150"))
METHODS = [name for name in budgetprune.methods() if not find(name).trainable and name != "none"]
METHODS.sort(key=lambda name: (name not in ("uniform", "prumerge", "fastv"), name))


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


@pytest.fixture(scope="module")
def workbench():
    return Workbench(SECONDS, "BENCH_GENERATE_SECONDS")


@pytest.mark.parametrize("case", CASES)
def bench_generate(benchmark, workbench, environment, case):
    case = CASES[case]
    workbench.enter(case)
    found = measured(benchmark, workbench, case)
    benchmark.extra_info.update(
        environment, op="generate", case="prefill", shape=f"{case.model} B={case.B} K={case.keep}", dtype="bfloat16",
        provider=case.provider, model=case.model, B=case.B, keep=case.keep, on=case.device, layers=workbench.layers,
        device=torch.cuda.get_device_name() if case.device == "cuda" else environment["cpu"],
        sizes=[list(workbench.inputs[case.B]["input_ids"].shape)], **found)
