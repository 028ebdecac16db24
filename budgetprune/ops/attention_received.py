"""How much attention each token gets: the score of FastV, PruMerge and VisionZip."""

import torch
from torch import Tensor

from ._checks import check_float, check_like
from ._native import provide

ROWS = ("last", "cls", "all")


def attention_received_reference(q: Tensor, k: Tensor, rows: str, mask: Tensor | None, scale: float) -> Tensor:
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, H, Q, _ = q.shape
    N = k.shape[2]
    keys = torch.ones(B, N, dtype=torch.bool, device=q.device) if mask is None else mask
    queries = keys if mask is not None and Q == N else torch.ones(B, Q, dtype=torch.bool, device=q.device)
    index = torch.arange(Q, device=q.device)
    if rows == "last":
        queries = queries & (index == torch.where(queries, index, -1).amax(1, keepdim=True))
    elif rows == "cls":
        queries = (index == 0).expand(B, Q)
    scores = (q.to(kind) * scale) @ k.to(kind).repeat_interleave(H // k.shape[1], 1).transpose(-1, -2)
    exists = keys[:, None, None, :]
    attention = scores.masked_fill(~exists, -torch.inf).softmax(-1).masked_fill(~exists, 0)
    total = attention.mean(1).masked_fill(~queries[..., None], 0).sum(1)
    return total / queries.sum(1, keepdim=True).clamp_min(1)


_op = provide("attention_received(Tensor q, Tensor k, str rows, Tensor? mask, float scale) -> Tensor",
              attention_received_reference)


@torch.library.register_fake("budgetprune::attention_received")
def _(q, k, rows, mask, scale):
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((q.shape[0], k.shape[2]), dtype=kind)


def attention_received(
    q: Tensor, k: Tensor, *, rows: str = "last", mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Mean over heads of the softmax attention that each key gets from the chosen queries.

    Args:
        q: [B, H, Q, D] float32, float16, bfloat16 or float64, as attention sees them (after position encoding).
        k: [B, Hkv, N, D], dtype of `q`; H is a multiple of Hkv.
        rows: "last": from the last query of each sample, the last True of `mask` where Q == N (FastV);
            "cls": from query 0 (PruMerge, VisionZip);
            "all": mean over all queries, each of which sees every key (vision towers without CLS).
        mask: [B, N] bool, True where the key exists; of the queries too where Q == N.
        scale: of q . k; D ** -0.5 if not given.

    Returns:
        [B, N] float32 (float64 for float64), no gradient. Each row sums to 1; keys that do not exist get exactly 0,
        and so do all keys of a sample without an existing key or query. NaN in a key that exists is not hidden.

    Raises:
        ValueError: a shape or device does not fit, Q is 0, or `rows` is unknown.
        TypeError: another dtype, or dtypes that differ.

    The softmax is over all existing keys, never over the image tokens alone, in the dtype of the result; nothing of
    size [H, Q, N] is stored, and the result is the same for any number of threads. "last" and "cls" read K once.
    Source: FastV (Chen et al., ECCV 2024), its last-row mean, here for every sample of the batch; CLS attention of
    LLaVA-PruMerge (Shang et al., 2024) and VisionZip (Yang et al., 2025).
    """
    check_float("q", q, "B H Q D")
    check_float("k", k, "B Hkv N D")
    B, H, Q, D = q.shape
    _, heads, N, _ = k.shape
    check_like("k", k, (B, heads, N, D), (q.dtype,), q.device)
    if heads == 0 or H == 0 or H % heads:
        raise ValueError(f"q must have a positive multiple of k's Hkv={heads} heads, got H={H}")
    if Q == 0:
        raise ValueError("q must have at least one query, got Q=0")
    if rows not in ROWS:
        raise ValueError(f"rows must be one of {', '.join(ROWS)}, got {rows!r}")
    if mask is not None:
        check_like("mask", mask, (B, N), (torch.bool,), q.device)
    scale = float(max(D, 1)) ** -0.5 if scale is None else float(scale)
    return _op(q.detach(), k.detach(), rows, mask, scale)
