"""The floor for merging: averages of rectangles."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..plan import MergeLists, TokenPlan
from .base import Selector, TokenView
from .uniform import bands, lattice


def rectangles(keep: int, rows: int, columns: int) -> Tensor:
    """[rows * columns] int64, which of `keep` rectangles each token of the grid is in.

    The grid is cut into bands of rows, as uniform does, and each band into its share of rectangles. A token belongs
    where its centre lies; a cut through its centre gives it to the later one. None is empty.
    """
    shares = torch.tensor(bands(keep, rows, columns))
    band = (2 * torch.arange(rows) + 1) * len(shares) // (2 * rows)
    share = shares[band][:, None]
    before = (shares.cumsum(0) - shares)[band][:, None]
    return (before + (2 * torch.arange(columns) + 1) * share // (2 * columns)).flatten()


@dataclass(frozen=True)
class Pooling(Selector):
    """x = mean over each of K rectangles that cover the grid, in raster order; intervals where there is no grid.

    No paper's method, a floor: average pooling to any count. With K = (rows/s) * (columns/s) it is average pooling
    with kernel and stride s. The positions given as kept are those of uniform, one in the middle of each rectangle.
    """

    name = "pooling"
    needs: ClassVar = frozenset({"grid"})
    merges: ClassVar[bool] = True

    def plan(self, view: TokenView, keep) -> TokenPlan:
        keep = self.require(keep)
        n, device, width = view.tokens.shape[1], view.tokens.device, max(keep)
        if min(keep) >= n:
            return TokenPlan(torch.arange(n, dtype=torch.int32, device=device).expand(len(keep), n))
        grid = view.grid if view.grid is not None else (1, n)
        regions = {k: rectangles(k, *grid) for k in set(keep)}
        member = torch.stack([regions[k] for k in keep])
        weight = torch.stack([1 / regions[k].bincount()[regions[k]] for k in keep])
        kept = torch.tensor([lattice(k, *grid) + [-1] * (width - k) for k in keep], dtype=torch.int32, device=device)
        lists = MergeLists.partition(member.to(device), weight.to(device), width)
        return TokenPlan(kept, lists, None if len(regions) == 1 else torch.tensor(keep, device=device))

    def flops(self, tokens, width, keep):
        return 2 * tokens * width if keep < tokens else 0
