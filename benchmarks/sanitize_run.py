"""Calls every op once, forward and backward, in small odd shapes: what the sanitizers of gpu_check.py watch.

python benchmarks/sanitize_run.py cuda [--real]     --real: in the shapes of LLaVA-1.5, for a profiler
"""

import sys

import torch

from budgetprune import ops


def selection(device, rows, tokens, keep):
    logits = torch.randn(rows, tokens, device=device)
    counts = torch.randint(0, keep + 1, (rows,), dtype=torch.int32, device=device)
    ops.select_topk(logits, counts, max_keep=keep)
    key = torch.tensor([1, 2], device=device)
    for estimator in ("race", "fermi", "softmax"):
        leaf = logits.clone().requires_grad_()
        gate, kept = ops.gumbel_topk(leaf, counts, key=key, estimator=estimator, max_keep=keep)
        gate.backward(torch.randn_like(gate))
    return kept


def gather(device, rows, tokens, channels, kept, dtype):
    x = torch.randn(rows, tokens + 1, channels, device=device, dtype=dtype, requires_grad=True)
    gate = torch.rand(rows, tokens, device=device, requires_grad=True)
    total = rows + int((kept >= 0).sum())
    for options in ({}, {"packed": True, "total": total}, {"gate": gate}):
        ops.gather_tokens(x, kept, prefix=1, **options).tokens.float().sum().backward()


def attention(device, batch, heads, groups, length, size, dtype):
    q = torch.randn(batch, heads, length, size, device=device, dtype=dtype)
    k, v = (torch.randn(batch, groups, length, size, device=device, dtype=dtype) for _ in range(2))
    mask = torch.arange(length, device=device) < torch.randint(length // 2, length + 1, (batch, 1), device=device)
    for rows in ("last", "cls", "all"):
        ops.attention_received(q, k, rows=rows, mask=mask)
    image = torch.arange(length, device=device).expand(batch, -1) > length // 4
    ops.fastv_select(q, k, image.contiguous(), length // 4, mask=mask, max_kept=length)
    gate = (torch.rand(batch, length, device=device) > 0.4).float()
    leaves = [t.detach().requires_grad_() for t in (q, k, v, gate)]
    ops.gated_attention(*leaves, mask=mask).float().sum().backward()


def merging(device, rows, tokens, channels, keep):
    x = torch.randn(rows, tokens, channels, device=device)
    similarity = ops.cosine_similarity_matrix(x)
    for method in ("max_min", "dpp"):
        ops.greedy_select(similarity, keep, method=method)
    offsets = torch.arange(0, 3 * keep + 1, 3, dtype=torch.int32, device=device).expand(rows, -1).contiguous()
    index = torch.randint(-1, tokens, (rows, 3 * keep), dtype=torch.int32, device=device)
    weight = torch.rand(rows, 3 * keep, device=device, requires_grad=True)
    leaf = x.clone().requires_grad_()
    ops.merge_tokens(leaf, offsets, index, weight).sum().backward()


def main(device, real):
    torch.manual_seed(0)
    if real:
        kept = selection(device, 64, 576, 192)
        gather(device, 64, 576, 1024, kept, torch.bfloat16)
        attention(device, 8, 32, 32, 640, 128, torch.bfloat16)
        merging(device, 8, 576, 1024, 64)
    else:
        for rows, tokens, keep in ((3, 77, 10), (270, 130, 9), (2, 700, 33), (1, 9001, 50)):
            kept = selection(device, rows, tokens, keep)
            if tokens < 1000:
                gather(device, rows, tokens, 24 if rows > 3 else 33, kept, torch.bfloat16)
        for dtype in (torch.bfloat16, torch.float32):
            attention(device, 2, 4, 2, 133, 40, dtype)
            attention(device, 1, 2, 2, 65, 64, dtype)
        merging(device, 2, 101, 33, 7)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every op ran")


if __name__ == "__main__":
    main(sys.argv[1], "--real" in sys.argv[2:])
