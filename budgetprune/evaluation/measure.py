"""Milliseconds and bytes of a model as it stands, pruned or not."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn


def median_ms(call: Callable[[], object], device: torch.device, *, warmup: int = 2, repeats: int = 7) -> float:
    """Median time of `call` after warm-up, the device synchronised inside the timed span."""
    def timed():
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    for _ in range(warmup):
        timed()
    return statistics.median(timed() for _ in range(repeats))


@torch.no_grad()
def prefill_ms(model: nn.Module, inputs: dict, **options) -> float:
    """Median milliseconds from pixels and prompt to the first token's logits: tower, selection, projector, decoder."""
    return median_ms(lambda: model(**inputs, use_cache=True, logits_to_keep=1), inputs["input_ids"].device, **options)


@torch.no_grad()
def decode_ms_per_token(model: nn.Module, inputs: dict, *, tokens: int = 8, **options) -> float:
    """Median milliseconds of one further token: generate() of 1 + `tokens` against generate() of 1."""
    device = inputs["input_ids"].device

    def run(new):
        def call():
            model.generate(**inputs, do_sample=False, num_beams=1, min_new_tokens=new, max_new_tokens=new)
        return median_ms(call, device, **options)

    return max(0.0, (run(1 + tokens) - run(1)) / tokens)


@torch.no_grad()
def peak_bytes(model: nn.Module, inputs: dict) -> int:
    """Bytes of the weights plus the most that one prefill held beside them.

    On a GPU the allocator's own peak; on the CPU the running sum of the allocations that torch's profiler saw.
    """
    device = inputs["input_ids"].device
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    def prefill():
        return model(**inputs, use_cache=True, logits_to_keep=1)

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = prefill()
        torch.cuda.synchronize(device)
        del held
        return weights + torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = prefill()
    del held
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = running = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        running += event.nbytes()
        most = max(most, running)
    return weights + most
