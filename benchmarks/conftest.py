"""The fixture `bench`: checks a provider against the reference, and only then times it.

    @pytest.mark.parametrize("provider", ["budgetprune", "eager composition"])
    @pytest.mark.parametrize("shape", names("llava15", "qwen25vl"))
    def bench_select_topk(bench, provider, shape, device):
        s = SHAPES[shape]
        scores = torch.randn(s.B, s.N, device=device)
        call = {"budgetprune": select_topk, "eager composition": topk_then_sort}[provider]
        bench(provider, call, reference, (scores, s.K), bytes_moved=5 * scores.nbytes)

bench(provider, call, reference, args, *, bytes_moved=None, flops=None, baseline="eager composition",
      check=torch.testing.assert_close) does, in this order:
  1. result = call(*args), expected = reference(*args), check(result, expected). A wrong provider fails; it is never
     timed. `reference` is the op's own reference, imported from budgetprune.ops, never a third copy. `call` may return
     a tensor or a tuple of them (a backward returns its gradients). `check` is replaced where equality is not the law,
     for example a baseline that draws other noise: check=lambda result, expected: ...
  2. warms up, and chooses rounds so that a case takes about BENCH_SECONDS (default 0.3); a call above 0.2 s gets three
     rounds and no warm-up beyond the check, one above 1 s a single round.
  3. times call(*args): on the CPU with pytest-benchmark, on a GPU as gpu_timing.py says, beside one such round.
  4. extra_info: op (from the file's name), case (the function), shape, dtype, provider, baseline, device, threads,
     torch, cuda, commit, bytes_moved, flops, GB/s and GFLOP/s of the fastest round; on a GPU hot_us, cold_us, wall_us,
     graph, peak_bytes, the rates of hot_us and their share of the chip's measured ceilings.

`baseline` names the provider that report.py divides by; it must be one of the providers of the same case. The
providers of one case run next to each other, so that a busy machine disturbs them alike. `device` runs on the CPU and,
where there is one, on the GPU; BUDGETPRUNE_BENCH_DEVICES=cuda asks for some of them only. The CPU uses
torch.get_num_threads(); set OMP_NUM_THREADS to change it.
"""

import ctypes
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import gpu_timing
import pytest
import torch

SECONDS = float(os.environ.get("BENCH_SECONDS", "0.3"))
SLOW = 0.2  # seconds a call
ASKED = os.environ.get("BUDGETPRUNE_BENCH_DEVICES", "cpu,cuda").split(",")
DEVICES = [d for d in ("cpu", "cuda") if d in ASKED and (d == "cpu" or torch.cuda.is_available())]


def commit():
    """The commit that was timed; "+" marks uncommitted changes."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    found = subprocess.run(git, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@pytest.fixture(scope="session", autouse=True)
def memory_is_kept():
    """glibc hands large results back to the system and then faults every page in anew, which can take longer than the
    op and falls on one provider or another by chance. For all of them memory stays, as in torch's CUDA allocator."""
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="session")
def environment():
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit(),
            "threads": torch.get_num_threads(), "cpu": cpu_name()}


def pytest_collection_modifyitems(items):
    """Puts the providers of one case next to each other."""
    first = {}

    def case(item):
        parameters = getattr(item, "callspec", None)
        rest = {k: str(v) for k, v in parameters.params.items() if k != "provider"} if parameters else {}
        return item.nodeid.split("[", 1)[0], tuple(sorted(rest.items()))

    for position, item in enumerate(items):
        first.setdefault(case(item), position)
    items.sort(key=lambda item: first[case(item)])


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for branch in tree for t in tensors(branch)] if isinstance(tree, (tuple, list)) else []


def on_cpu(benchmark, call):
    """Rounds so that a case takes about SECONDS."""
    for _ in range(4):
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        if once > SLOW:
            break
    iterations = max(1, int(2e-4 / once))
    rounds = (3 if once < 1 else 1) if once > SLOW else min(max(5, int(SECONDS / (once * iterations))), 1000)
    benchmark.pedantic(call, rounds=rounds, iterations=iterations, warmup_rounds=int(once <= SLOW))


@pytest.fixture
def bench(request, benchmark, environment):
    parameters = request.node.callspec.params

    def run(provider, call, reference, args, *, bytes_moved=None, flops=None, baseline="eager composition",
            check=torch.testing.assert_close):
        check(call(*args), reference(*args))
        first = tensors(args)[0]
        gpu = first.device.type == "cuda"
        info = benchmark.extra_info
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            info.update(gpu_timing.timed(lambda: call(*args), SECONDS))
            benchmark.pedantic(lambda: (call(*args), torch.cuda.synchronize()), rounds=1)
            info["peak_bytes"] = torch.cuda.max_memory_allocated()
        else:
            on_cpu(benchmark, lambda: call(*args))

        shape = parameters.get("shape") or "x".join(map(str, first.shape))
        benchmark.group = f"{request.node.originalname} {shape} {first.dtype} {first.device.type}"
        info.update(
            environment, op=request.path.stem.removeprefix("bench_"), provider=provider, baseline=baseline, shape=shape,
            case=request.node.originalname.removeprefix("bench_"), dtype=str(first.dtype).removeprefix("torch."),
            device=torch.cuda.get_device_name() if gpu else environment["cpu"],
            sizes=[list(t.shape) for t in tensors(args)], bytes_moved=bytes_moved, flops=flops)
        stats = benchmark.stats  # none under --benchmark-disable
        seconds = info["hot_us"] * 1e-6 if gpu else stats.stats.min if stats else None
        if seconds and bytes_moved:
            info["GB/s"] = bytes_moved / seconds / 1e9
        if seconds and flops:
            info["GFLOP/s"] = flops / seconds / 1e9
        if gpu:
            info["ceilings"] = gpu_timing.ceilings()

    return run
