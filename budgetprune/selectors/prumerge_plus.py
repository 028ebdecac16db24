"""PruMerge+: PruMerge's outliers, and a spatial sample of the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .prumerge import PruMerge, outliers, without_extra


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge with more tokens: every s-th patch joins the outliers, s = int(int(1/r)/3), r the outliers' share.

    Shang et al., 2024, the authors' code at batch 1: outliers in falling attention, then the sampled
    patches that are not outliers in raster order, then the extra token. An int keep: exactly that many
    tokens, half of them by attention, half evenly spaced among the rest (published: 72 and 72, with
    duplicates), and the extra token.

    Departures beside PruMerge's: the sample may reach the last patch (published: 575, hard-coded); s is at
    least 1, where the published code stops with an error (more than a third are outliers); a patch is
    never taken twice.
    """

    name = "prumerge_plus"
    needs: ClassVar = PruMerge.needs
    adaptive_count: ClassVar = True

    def chosen(self, a: Tensor, keep):
        b, n = a.shape
        by_attention = a.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(by_attention).scatter(1, by_attention, torch.arange(n, device=a.device).expand(b, n))
        position = torch.arange(n, device=a.device).expand(b, n)
        if keep is None:
            best = outliers(a)[:, None]
            stride = ((n // best) // 3).clamp_min(1)
            sampled = position % stride == 0
        else:
            total = torch.tensor(without_extra(keep, n), device=a.device)[:, None]
            best = (total + 1) // 2
            sampled = _spaced(rank >= best, total - best)
        top = rank < best
        # Sort key: attention rank for the best, then raster order for the sample, then everything else.
        key = torch.where(top, rank, torch.where(sampled, n + position, 2 * n + position))
        return key.argsort(dim=1), (top | sampled).sum(1)


def _spaced(free: Tensor, count: Tensor) -> Tensor:
    """[B, N] bool: `count` [B, 1] of the `free` positions of each row, evenly spaced among them."""
    index = free.cumsum(1) - 1
    size = free.sum(1, keepdim=True)
    # Position i of the free ones is taken where floor((i + 1) c / size) steps up: exactly c steps.
    return free & ((index + 1) * count // size.clamp_min(1) > index * count // size.clamp_min(1))
