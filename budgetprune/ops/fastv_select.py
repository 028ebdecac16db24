"""FastV's choice of tokens in one call: last-row attention, rank, compaction."""

import torch
from torch import Tensor

from ._checks import check_float, check_keep, check_like
from ._native import provide
from .attention_received import attention_received_reference
from .select_topk import select_topk_reference


def _counts(image, mask, keep, max_keep):
    """How many tokens of each row stay: existing ones beside the image, and the best of the image."""
    exists = torch.ones_like(image) if mask is None else mask
    wanted = torch.full((len(image),), max_keep, device=image.device) if keep is None else keep
    return exists, (exists & ~image).sum(1) + torch.minimum(wanted, (exists & image).sum(1))


def fastv_select_reference(
    q: Tensor, k: Tensor, image: Tensor, keep: Tensor | None, max_keep: int, mask: Tensor | None, max_kept: int,
    scale: float
) -> tuple[Tensor, Tensor]:
    scores = attention_received_reference(q, k, "last", mask, scale)
    exists, counts = _counts(image, mask, keep, max_keep)
    if int(counts.max() if len(counts) else 0) > max_kept:
        raise RuntimeError(f"fastv_select: max_kept must hold what is kept, {int(counts.max())}, got {max_kept}")
    rank = scores.masked_fill(scores.isnan() & image, torch.inf)  # nothing ranks above what stays anyway
    rank = torch.where(image, rank, torch.nan).masked_fill(~exists, -torch.inf)
    return select_topk_reference(rank, counts.int(), max_kept), scores


_op = provide("fastv_select(Tensor q, Tensor k, Tensor image, Tensor? keep, SymInt max_keep, Tensor? mask, "
              "SymInt max_kept, float scale) -> (Tensor kept, Tensor scores)", fastv_select_reference)


@torch.library.register_fake("budgetprune::fastv_select")
def _(q, k, image, keep, max_keep, mask, max_kept, scale):
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return (q.new_empty((q.shape[0], max_kept), dtype=torch.int32), q.new_empty((q.shape[0], k.shape[2]), dtype=kind))


def fastv_select(
    q: Tensor, k: Tensor, image: Tensor, keep: int | list[int] | Tensor, *, mask: Tensor | None = None,
    scale: float | None = None, max_keep: int | None = None, max_kept: int | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens FastV lets through: all text, and the `keep` image tokens that the last token looks at most.

    What comes out goes to gather_tokens for hidden states, cos and sin. On a GPU two launches, no host in between.

    Args:
        q: [B, H, Q, D] float32, float16, bfloat16 or float64, as attention sees them (after position encoding).
        k: [B, Hkv, N, D], dtype of `q`; H is a multiple of Hkv.
        image: [B, N] bool, True where a key is an image token, in one run or several.
        keep: image tokens kept: an int for all rows, or one per row as a sequence or an int32 Tensor [B]; a row with
            fewer keeps them all.
        mask: [B, N] bool, True where the key exists; of the queries too where Q == N.
        scale: of q . k; D ** -0.5 if not given.
        max_keep: the largest of `keep` where that is a Tensor; naming it avoids reading `keep` back from a GPU.
        max_kept: columns of `kept`, where the host knows the longest row: text tokens + keep. Without it the counts are
            read back once, and torch.compile cannot take the graph whole.

    Returns:
        kept: [B, max_kept] int32, ascending, padded with -1.
        scores: [B, N] float32 (float64 for float64), as attention_received(rows="last") gives them.

    Raises:
        ValueError: a shape or device does not fit, or a count outside [0, N].
        TypeError: another dtype.
        RuntimeError: on the CPU, more is kept than `max_kept` holds. On a GPU the worst image tokens are left out.

    Equal scores: the lower position stays; a NaN score ranks first. No gradient. One ranking a sample, where the
    published code applies the first sample's to all. Source: FastV, Chen et al., ECCV 2024.
    """
    check_float("q", q, "B H Q D")
    check_float("k", k, "B Hkv N D")
    B, H, Q, D = q.shape
    heads, N = k.shape[1:3]
    check_like("k", k, (B, heads, N, D), (q.dtype,), q.device)
    if heads == 0 or H == 0 or H % heads:
        raise ValueError(f"q must have a positive multiple of k's Hkv={heads} heads, got H={H}")
    if Q == 0:
        raise ValueError("q must have at least one query, got Q=0")
    check_like("image", image, (B, N), (torch.bool,), q.device)
    if mask is not None:
        check_like("mask", mask, (B, N), (torch.bool,), q.device)
    keep, max_keep = check_keep(keep, B, N, q.device, max_keep)
    if max_kept is None:
        max_kept = int(_counts(image, mask, keep, max_keep)[1].max()) if B else 0
    if not 0 <= max_kept <= N:
        raise ValueError(f"max_kept must be in [0, N={N}], got {max_kept}")
    scale = float(max(D, 1)) ** -0.5 if scale is None else float(scale)
    return _op(q.detach(), k.detach(), image, keep, max_keep, mask, max_kept, scale)
