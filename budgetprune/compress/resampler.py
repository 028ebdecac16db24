"""Learned queries that read the whole image: the resampler of Qwen-VL."""

from math import isqrt

import torch
from torch import Tensor, nn

from ..checked import integer
from .base import Compressor, Site


class Resampler(Compressor):
    """token[k] = LN(MHA(LN(query[k]) + place[k], LN(x) + places, LN(x))): K learned queries read all patches.

    Bai et al., 2023, "Qwen-VL", by the authors' code: one layer of cross attention, no feed-forward layer, no
    residual, a learned query for each token, sines and cosines of two coordinates (of MAE) added to queries and keys
    and not to values, heads of 128 channels; queries and the attention's output matrix begin as a truncated normal
    of 0.02, its other weights as torch begins them. It does not hear the question. K is a square number, a grid of
    queries.

    Departures: it is as wide as the tower, with the model's own projector behind it, where the published one is as
    wide as the language model, with a linear layer before and one matrix behind it; the norm behind the attention
    stays. Keys have the sines of their places in the queries' grid (published: the queries' table, interpolated), so
    that one query, too, can tell places apart. In a tower whose features are narrower than 128 channels there is one
    head.

    heads: of the attention; None: one for each 128 channels.
    """

    name = "resampler"

    def __init__(self, heads: int | None = None, train_projector: bool = True):
        super().__init__(train_projector)
        self._options["heads"] = None if heads is None else integer("heads", heads, 1)

    def counts(self, site: Site):
        return [side**2 for side in range(isqrt(site.tokens - 1), 0, -1)]

    def make(self, site: Site, keep: int) -> None:
        c, heads = site.width, self._options["heads"] or max(1, site.width // 128)
        if c % heads or c % 4:
            raise ValueError(f"heads must divide {c}, the width of the features, which must be a multiple of 4 for "
                             f"two coordinates; got {heads} heads")
        side, (rows, columns) = isqrt(keep), site.grid
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(keep, c), std=0.02))
        self.norm_query, self.norm_patches, self.norm_out = (nn.LayerNorm(c, eps=1e-6) for _ in range(3))
        self.attention = nn.MultiheadAttention(c, heads, batch_first=True)
        nn.init.trunc_normal_(self.attention.out_proj.weight, std=0.02)  # in_proj is no Linear, and keeps torch's own
        at = torch.arange(side).double()
        self.register_buffer("query_place", sines(at, at, c), persistent=False)
        down = (torch.arange(rows).double() + 0.5) * side / rows - 0.5
        along = (torch.arange(columns).double() + 0.5) * side / columns - 0.5
        self.register_buffer("patch_place", sines(down, along, c), persistent=False)

    def members(self):
        return None

    def forward(self, patches, layers=None, text=None):
        x = self.norm_patches(patches.to(self.query.dtype))
        q = (self.norm_query(self.query) + self.query_place).expand(len(x), -1, -1)
        out, _ = self.attention(q, x + self.patch_place, x, need_weights=False)
        return self.norm_out(out)

    def flops(self, tokens, width, keep):
        return 2 * (2 * keep * width * width + 2 * tokens * width * width + 2 * keep * tokens * width)


def sines(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """[R * C, width] float32 for coordinates [R] and [C]: sines and cosines at 10000^(-4 i / width) of the column, then
    of the row, a quarter of the channels each."""
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter).double() / quarter)

    def waves(at):
        return torch.cat([(at[:, None] * frequency).sin(), (at[:, None] * frequency).cos()], dim=1)

    down, along = waves(rows)[:, None], waves(columns)[None]
    both = torch.cat([along.expand(len(rows), -1, -1), down.expand(-1, len(columns), -1)], dim=2)
    return both.flatten(0, 1).float()
