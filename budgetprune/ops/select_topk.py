"""Positions of the best tokens of each row."""

import torch
from torch import Tensor

from ._checks import check_float, check_keep
from ._native import provide


def select_topk_reference(scores: Tensor, keep: Tensor | None, max_keep: int) -> Tensor:
    order = scores.sort(dim=1, descending=True, stable=True).indices
    counts = torch.full((scores.shape[0],), max_keep, device=scores.device) if keep is None else keep
    rank = torch.arange(max_keep, device=scores.device)
    beyond = rank >= counts[:, None]
    kept = order[:, :max_keep].masked_fill(beyond, scores.shape[1]).sort(dim=1).values
    return kept.masked_fill(kept == scores.shape[1], -1).int()


_op = provide("select_topk(Tensor scores, Tensor? keep, SymInt max_keep) -> Tensor", select_topk_reference)


@torch.library.register_fake("budgetprune::select_topk")
def _(scores, keep, max_keep):
    return scores.new_empty((scores.shape[0], max_keep), dtype=torch.int32)


@torch.library.register_vmap("budgetprune::select_topk")
def _(info, dims, scores, keep, max_keep):
    scores = scores.movedim(dims[0], 0) if dims[0] is not None else scores.expand(info.batch_size, *scores.shape)
    if keep is not None:
        keep = keep.movedim(dims[1], 0) if dims[1] is not None else keep.expand(info.batch_size, -1)
        keep = keep.reshape(-1)
    kept = _op(scores.flatten(0, 1), keep, max_keep)
    return kept.unflatten(0, scores.shape[:2]), 0


def select_topk(scores: Tensor, keep: int | list[int] | Tensor, *, max_keep: int | None = None) -> Tensor:
    """Positions of the `keep` best tokens of each row, in their own order.

    Equal scores: the lower position wins. -0 equals +0; NaN ranks first, as in torch.sort.

    Args:
        scores: [B, N] float32, float16, bfloat16 or float64; higher is kept.
        keep: K, tokens kept: an int for all rows, or one per row as a sequence or an int32 Tensor [B].
        max_keep: Kmax when `keep` is a Tensor; naming it avoids reading `keep` back from a GPU.

    Returns:
        [B, Kmax] int32, ascending, padded with -1, on the device of `scores`.

    Raises:
        ValueError: `scores` is not [B, N], or a count is outside [0, N].
        TypeError: another dtype.
        RuntimeError: a count inside a `keep` Tensor is outside [0, Kmax] (checked on the CPU; clamped on a GPU).

    No gradient. Source: radix select, Alabi et al., JEA 2012.
    """
    check_float("scores", scores, "B N")
    keep, max_keep = check_keep(keep, *scores.shape, scores.device, max_keep)
    return _op(scores.detach(), keep, max_keep)
