"""What only a GPU can show of every op: graphs, streams, no hidden synchronisation, inductor, sizes beyond 2^31."""

import gc
import os

import pytest
import torch

from budgetprune.ops import (
    attention_received,
    cosine_similarity_matrix,
    fastv_select,
    gated_attention,
    gather_tokens,
    greedy_select,
    gumbel_topk,
    merge_tokens,
    select_topk,
)

# BUDGETPRUNE_DRY_RUN=1 (benchmarks/gpu_check.py --dry-run) runs on the CPU what does not need the GPU's own machinery.
DRY = os.environ.get("BUDGETPRUNE_DRY_RUN") == "1"
DEVICE = "cpu" if DRY else "cuda"
pytestmark = [] if DRY else pytest.mark.cuda
needs_gpu = pytest.mark.skipif(DRY, reason="needs a GPU")


def key():
    return torch.tensor([3, 4], device=DEVICE)


def kept_of(rows, tokens, count):
    return torch.rand(rows, tokens, device=DEVICE).argsort(1)[:, :count].sort(1).values.int()


def rand(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


# op: (function of the tensors, what makes fresh tensors of one shape)
CASES = {
    "select_topk": (lambda s: select_topk(s, 192), lambda: (rand(64, 576),)),
    "select_topk long": (lambda s: select_topk(s, 2048), lambda: (rand(2, 16384),)),
    "select_topk ragged": (lambda s, k: select_topk(s, k, max_keep=192),
                           lambda: (rand(300, 576), torch.randint(0, 193, (300,), device=DEVICE, dtype=torch.int32))),
    "gumbel_topk": (lambda x, k: gumbel_topk(x, 192, key=k)[0], lambda: (rand(64, 576), key())),
    "gumbel_topk softmax": (lambda x, k: gumbel_topk(x, 192, key=k, estimator="softmax")[0],
                            lambda: (rand(300, 576), key())),
    "gumbel_topk long": (lambda x, k: gumbel_topk(x, 4000, key=k)[0], lambda: (rand(2, 30000), key())),
    "gather_tokens": (lambda x, kept: gather_tokens(x, kept, prefix=1).tokens,
                      lambda: (rand(8, 577, 1024, dtype=torch.bfloat16), kept_of(8, 576, 64))),
    "gather_tokens packed": (lambda x, kept: gather_tokens(x, kept, packed=True, total=8 * 64).tokens,
                             lambda: (rand(8, 576, 96), kept_of(8, 576, 64))),
    "attention_received last": (lambda q, k: attention_received(q, k), lambda: (
        rand(2, 8, 640, 128, dtype=torch.bfloat16), rand(2, 2, 640, 128, dtype=torch.bfloat16))),
    "attention_received all": (lambda q, k: attention_received(q, k, rows="all"), lambda: (
        rand(2, 8, 640, 64, dtype=torch.bfloat16), rand(2, 8, 640, 64, dtype=torch.bfloat16))),
    "fastv_select": (lambda q, k, image: fastv_select(q, k, image, 64, max_kept=640 - 512)[0], lambda: (
        rand(2, 8, 640, 128, dtype=torch.bfloat16), rand(2, 2, 640, 128, dtype=torch.bfloat16),
        (torch.arange(640, device=DEVICE) < 576).expand(2, -1).contiguous())),
    "gather_tokens gated": (lambda x, kept, gate: gather_tokens(x, kept, gate=gate).tokens,
                            lambda: (rand(4, 576, 96), kept_of(4, 576, 64), torch.rand(4, 576, device=DEVICE))),
    "greedy_select max_min": (lambda s: greedy_select(s, 32),
                              lambda: (cosine_similarity_matrix(rand(2, 300, 64)),)),
    "greedy_select dpp": (lambda s, r: greedy_select(s, 32, method="dpp", relevance=r),
                          lambda: (cosine_similarity_matrix(rand(2, 300, 64)), torch.rand(2, 300, device=DEVICE))),
    "merge_tokens": (lambda x, offsets, index, weight: merge_tokens(x, offsets, index, weight), lambda: (
        rand(2, 300, 96), torch.arange(0, 97, 3, device=DEVICE, dtype=torch.int32).expand(2, -1).contiguous(),
        torch.randint(-1, 300, (2, 96), device=DEVICE, dtype=torch.int32), torch.rand(2, 96, device=DEVICE))),
    "gated_attention": (lambda q, k, v, g: gated_attention(q, k, v, g), lambda: (
        rand(2, 8, 320, 64, dtype=torch.bfloat16), rand(2, 2, 320, 64, dtype=torch.bfloat16),
        rand(2, 2, 320, 64, dtype=torch.bfloat16), (torch.rand(2, 320, device=DEVICE) > 0.5).float())),
    "gated_attention float32": (lambda q, k, v, g: gated_attention(q, k, v, g), lambda: (
        rand(2, 4, 130, 24), rand(2, 4, 130, 24), rand(2, 4, 130, 24), torch.rand(2, 130, device=DEVICE))),
}
pytest_cases = pytest.mark.parametrize("name", CASES)


def forward_and_backward(function, inputs):
    """Everything the op gives: its output and, where there are any, its gradients."""
    inputs = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    out = function(*inputs)
    leaves = [x for x in inputs if x.requires_grad]
    if not out.requires_grad:
        return [out]
    upstream = torch.linspace(-1, 1, out.numel(), device=DEVICE).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


@pytest_cases
def test_an_op_gives_the_same_bits_every_time(name):
    function, make = CASES[name]
    inputs = make()
    first = forward_and_backward(function, inputs)
    for _ in range(5):
        for a, b in zip(first, forward_and_backward(function, inputs), strict=True):
            assert torch.equal(a, b)


@needs_gpu
@pytest_cases
def test_a_captured_graph_replays_on_new_data(name):
    function, make = CASES[name]
    inputs = make()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward_and_backward(function, inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(function, inputs)
    for _ in range(3):
        for old, new in zip(inputs, make(), strict=True):
            old.copy_(new)
        for out in captured:
            out.fill_(7)
        graph.replay()
        for a, b in zip(captured, forward_and_backward(function, inputs), strict=True):
            assert torch.equal(a, b)


@needs_gpu
@pytest_cases
def test_an_op_never_waits_for_the_gpu(name):
    function, make = CASES[name]
    inputs = make()
    forward_and_backward(function, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(function, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest_cases
def test_an_op_runs_on_the_current_stream(name):
    """Its input is written on a side stream behind a long wait: an op on another stream would read what was before."""
    function, make = CASES[name]
    inputs, fresh = make(), make()
    expected = forward_and_backward(function, fresh)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        for old, new in zip(inputs, fresh, strict=True):
            old.copy_(new)
        out = forward_and_backward(function, inputs)
    side.synchronize()
    for a, b in zip(out, expected, strict=True):
        assert torch.equal(a, b)


@pytest_cases
def test_inductor_takes_the_op_in_one_graph(name):
    function, make = CASES[name]
    inputs = make()
    torch._dynamo.reset()  # all cases share this line of code
    compiled = torch.compile(lambda *x: function(*x) * 1, fullgraph=True)
    for a, b in zip(forward_and_backward(compiled, inputs), forward_and_backward(function, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest_cases
def test_opcheck_passes_on_the_gpu(name):
    from torch.testing._internal.optests import opcheck

    function, make = CASES[name]
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.namespace == "budgetprune":
                calls.append((op, args))
            return op(*args, **(kwargs or {}))

    with Record():
        forward_and_backward(function, make())
    assert calls
    for op, args in calls:
        opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


@needs_gpu
@pytest.mark.parametrize("name", ["gather", "select"])
def test_sizes_beyond_2_to_the_31_are_addressed_right(name):
    gc.collect()
    torch.cuda.empty_cache()
    needed = 14 << 30 if name == "gather" else 13 << 30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    if name == "gather":  # 2^31 + elements of one byte each would not pass 32-bit byte offsets either
        x = torch.zeros(5, 1 << 15, 1 << 15, device=DEVICE, dtype=torch.int8)
        x[4, -1, -3:] = torch.tensor([1, 2, 3], device=DEVICE, dtype=torch.int8)
        kept = torch.full((5, 1), (1 << 15) - 1, device=DEVICE, dtype=torch.int32)
        tokens = gather_tokens(x, kept).tokens
        assert tokens[4, 0, -3:].tolist() == [1, 2, 3] and int(tokens.sum()) == 6
    else:
        scores = torch.zeros((1 << 31) // 576 + 2, 576, device=DEVICE, dtype=torch.float16)
        scores[-1, 5], scores[-1, 570] = 2, 1
        kept = select_topk(scores, 2)
        assert kept[-1].tolist() == [5, 570] and kept[-2].tolist() == [0, 1]
