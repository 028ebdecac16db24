"""How a call is timed on a GPU: replays of a CUDA graph where it can be captured, events around calls where not.

hot     the same buffers again and again: what fits in L2 stays there
cold    L2 is overwritten before every replay, outside the timed part
wall    an eager call as Python makes it, launches queued back to back
All are medians, in microseconds.
"""

import statistics
import time
from functools import cache

import torch


@cache
def flusher():
    """A buffer larger than any L2 there is."""
    return torch.empty(256 << 20, dtype=torch.int8, device="cuda")


def capture(call, repeats):
    """A graph of `repeats` calls, or None where the call cannot be captured (it waits for the GPU, say)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
        return graph
    except Exception:  # torch raises many kinds here; what follows times the call without a graph
        torch.cuda.synchronize()
        return None


def between_events(work, before=None, rounds=20):
    """Median microseconds of work() on the GPU; before() runs ahead of each, untimed."""
    pairs = []
    for _ in range(rounds):
        if before:
            before()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def timed(call, seconds):
    """{"hot_us", "cold_us", "wall_us", "graph"} of a call, in about `seconds`."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - begin
    repeats = max(1, min(20, int(2e-3 / max(once, 1e-6))))
    rounds = max(3, min(50, int(seconds / 3 / max(once * repeats, 1e-5))))
    graph = capture(call, repeats)
    if graph is not None:
        hot = between_events(graph.replay, rounds=rounds) / repeats
        single = capture(call, 1)
        cold = between_events(single.replay, before=lambda: flusher().fill_(1), rounds=rounds)
    else:
        hot = between_events(lambda: [call() for _ in range(repeats)], rounds=rounds) / repeats
        cold = between_events(call, before=lambda: flusher().fill_(1), rounds=rounds)
    walls = []
    for _ in range(min(rounds, 10)):
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
        walls.append((time.perf_counter() - begin) / repeats)
    return {"hot_us": hot, "cold_us": cold, "wall_us": 1e6 * statistics.median(walls), "graph": graph is not None}


@cache
def ceilings():
    """What this chip reaches: GB/s of a large copy (bytes read and written), TFLOP/s of a large bfloat16 product."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda").random_(0, 100)
    target = torch.empty_like(source)
    copy = between_events(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = between_events(lambda: a @ b)
    return {"copy GB/s": 2 * source.nbytes / copy / 1e3, "matmul TFLOP/s": 2 * 8192**3 / product / 1e6}
