"""The other floor: a regular grid."""

from dataclasses import dataclass
from math import ceil, sqrt

import torch

from .base import Selector, TokenView, ragged


def bands(keep: int, rows: int, columns: int) -> list[int]:
    """How many of `keep` tokens each of about sqrt(keep) bands of a rows x columns grid holds, spread evenly."""
    used = min(rows, max(1, round(sqrt(keep * rows / columns)), ceil(keep / columns)))
    while ceil(keep / used) > columns:
        used += 1
    return [(i + 1) * keep // used - i * keep // used for i in range(used)]


def lattice(keep: int, rows: int, columns: int) -> list[int]:
    """`keep` positions spread evenly over a rows x columns grid, ascending, all different.

    About sqrt(keep) of the grid's rows are used, evenly spaced; each holds its share of the tokens,
    evenly spaced as well. With keep = (rows/s) * (columns/s) this is the grid of stride s.
    """
    shares = bands(keep, rows, columns)
    positions = []
    for i, share in enumerate(shares):
        row = (2 * i + 1) * rows // (2 * len(shares))
        positions += [row * columns + (2 * j + 1) * columns // (2 * share) for j in range(share)]
    return positions


@dataclass(frozen=True)
class Uniform(Selector):
    """Every sample keeps the same evenly spaced positions; a 1-D spacing where there is no grid."""

    name = "uniform"
    needs = frozenset({"grid"})

    def plan(self, view: TokenView, keep):
        keep = self.require(keep)
        n = view.tokens.shape[1]
        exist = [n] * len(keep) if view.valid is None else view.valid.sum(1).tolist()
        rows = []
        for k, tokens in zip(keep, exist):
            grid = view.grid if view.grid is not None and tokens == n else (1, tokens)
            rows.append(lattice(k, *grid) + [-1] * (max(keep) - k))
        kept = torch.tensor(rows, dtype=torch.int32, device=view.tokens.device)
        return ragged(kept, keep)
