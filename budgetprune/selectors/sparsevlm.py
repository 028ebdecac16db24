"""SparseVLM: words that matter to the image rate its tokens; the best of the dropped are recycled."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ..checked import flag
from ..ops import select_topk
from ..plan import MergeLists, TokenPlan
from .base import Selector, TokenView, fractions, ragged, settle, spread

# Image tokens after each stage in the published settings "64", "128" and "192" of 576, recycled ones included.
PUBLISHED = ((0, 0, 0), (82, 32, 18), (312, 117, 39), (309, 204, 113), (576, 576, 576))
POOL = 0.3  # share of the dropped tokens that is recycled


def recycled(dropped: int) -> int:
    """Tokens that the published code makes of the best 30 % of `dropped` tokens, about one of ten."""
    return (int(POOL * dropped) + 1) // 10 + 1 if dropped else 0


def split(tokens: int, keep: int) -> tuple[int, int]:
    """(tokens kept as they are, tokens made of dropped ones) of a budget; at most half of it is made."""
    for kept in range(keep, keep // 2, -1):
        if kept + recycled(tokens - kept) <= keep:
            return kept, keep - kept
    return ceil(keep / 2), keep // 2


@dataclass(frozen=True)
class SparseVLM(Selector):
    """score[n] = the sum over the raters of their attention to n, mean over heads.

    Zhang et al., ICML 2025, "SparseVLM"; the rule is version 1.5 of the authors' code. Raters are the text tokens
    behind the image that the image's embeddings point to more than to the mean one: softmax over text of x_n . t,
    mean over n. They are chosen once. The published stages follow layers 2, 6 and 15 of 32, so that layers 3, 7 and
    16 are the first to see fewer tokens: `at` are these layers as fractions of the depth. At each stage the best 30 %
    of the dropped tokens are clustered by density peaks (Du et al., 2016) and each cluster's mean is kept as one token.

    `keep` counts image tokens after the last stage, recycled ones included, at most half of it. Published only for
    "192", "128" and "64" of 576 tokens, which are keep = 113, 39 and 18: these give exactly the published counts at
    all stages, and others lie on lines between them. The published names leave out the recycled tokens and the layer
    that gives the scores: counting both, the means over the layers are 206.5, 145.4 and 82.3.

    Departures: a recycled token takes the place and position of its cluster's densest token, where the published code
    puts all behind the kept ones and numbers tokens anew. Equal densities are told apart by order instead of noise,
    and the number of neighbours that density is measured over is the number of clusters, as published, so that one
    cluster has density 1 everywhere and takes the pool's first token as its centre. With several images in a prompt a
    cluster may reach across them. Samples without text behind their image are rated by their last token.
    """

    name = "sparsevlm"
    needs = frozenset({"attention", "text"})
    place = "llm"
    positions = "original"
    merges = True

    at: tuple[float, ...] = (3 / 32, 7 / 32, 16 / 32)
    recycle: bool = True

    def __post_init__(self):
        flag("recycle", self.recycle)
        settle(self, at=fractions(self.at))
        if len(self.at) != 3:
            raise ValueError(f"at must have three stages, as published, got {list(self.at)}")

    def layers(self, depth):
        return spread(self.at, depth)

    def stage_keep(self, keep, stage, tokens):
        scale = PUBLISHED[-1][-1] / tokens
        for low, high in zip(PUBLISHED, PUBLISHED[1:]):
            if keep * scale <= high[-1]:
                along = (keep * scale - low[-1]) / (high[-1] - low[-1])
                return max(keep, min(tokens, round((low[stage] + along * (high[stage] - low[stage])) / scale)))
        return tokens

    def rows(self, view: TokenView) -> Tensor:
        """The raters."""
        image, text, exists = view.tokens.float(), view.need("text").float(), view.text_valid
        if not text.shape[1]:
            return torch.zeros(text.shape[:2], dtype=torch.bool, device=text.device)
        points = (image @ text.transpose(1, 2)).masked_fill(~exists[:, None], -torch.inf).softmax(2)
        # A sample without text has rows of NaN, and no rater.
        weight = points.nan_to_num().masked_fill(~view.valid[..., None], 0).sum(1)
        return (weight * exists.sum(1, keepdim=True) > weight.sum(1, keepdim=True)) & exists

    def plan(self, view: TokenView, keep) -> TokenPlan:
        score, keep = view.need("attention"), self.require(keep)
        exists = torch.ones_like(score, dtype=torch.bool) if view.valid is None else view.valid
        score = score.masked_fill(~exists, -torch.inf)
        tokens = [score.shape[1]] * len(keep) if view.valid is None else exists.sum(1).tolist()
        parts = [split(n, k) if self.recycle else (k, 0) for n, k in zip(tokens, keep)]
        whole = [kept for kept, _ in parts]
        if not any(made for _, made in parts):
            return ragged(select_topk(score, whole), whole)
        order = score.argsort(dim=1, descending=True, stable=True)
        lists, kept = [], []
        for b, (n, (stay, made)) in enumerate(zip(tokens, parts)):
            pool = order[b, stay:stay + (max(int(POOL * (n - stay)) + 1, made) if made else 0)]
            clusters = density_peaks(view.tokens[b, pool].float(), made)
            sums = [(int(token), [int(token)]) for token in order[b, :stay].tolist()]
            sums += [(int(pool[centre]), pool[members].tolist()) for centre, members in clusters]
            sums.sort()
            kept.append([token for token, _ in sums])
            lists.append([members for _, members in sums])
        device = score.device
        return TokenPlan(_padded(kept, -1, torch.int32, device), _merge(lists, device),
                         torch.tensor(keep, device=device))

    def flops(self, tokens, width, keep):
        """Of a prompt in which one text token rates; the published prompts have some tens, and cost so much more."""
        total, seen = 2 * tokens * width, tokens  # raters are found by one product of image and text
        for stage in range(len(self.at)):
            left = self.stage_keep(keep, stage, tokens)
            stay, made = split(seen, left) if self.recycle else (left, 0)
            pool = int(POOL * (seen - stay)) + 1 if made else 0
            total, seen = total + 2 * width * (seen + pool * pool + pool), left
        return total


def density_peaks(x: Tensor, clusters: int) -> list[tuple[int, Tensor]]:
    """(centre, members) of each cluster of the rows of x [P, C], by DPC-KNN as the published code has it.

    Centres are the rows of highest density times distance to the nearest denser row; every row joins its nearest
    centre.
    """
    if not clusters:
        return []
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    density = -distance.topk(clusters, largest=False).values.square().mean(1)
    order = torch.arange(len(x), device=x.device)
    # exp is left to the product below: far apart, densities differ in the exponent only.
    denser = (density > density[:, None]) | ((density == density[:, None]) & (order < order[:, None]))
    apart = distance.masked_fill(~denser, distance.max()).amin(1)
    centres = (apart.log() + density).argsort(descending=True, stable=True)[:clusters]
    nearest = distance[:, centres].argmin(1)
    nearest[centres] = torch.arange(clusters, device=x.device)
    return [(int(centre), (nearest == number).nonzero().flatten()) for number, centre in enumerate(centres)]


def _padded(rows, fill, dtype, device):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype, device=device)


def _merge(lists: list[list[list[int]]], device) -> MergeLists:
    """Means over lists of tokens, for every sample; samples with fewer lists have empty ones at the end."""
    most = max(map(len, lists))
    offsets, index, weight = [], [], []
    for sample in lists:
        ends = [0]
        for members in sample:
            ends.append(ends[-1] + len(members))
        offsets.append(ends + [ends[-1]] * (most - len(sample)))
        index.append([token for members in sample for token in members])
        weight.append([1 / len(members) for members in sample for _ in members])
    return MergeLists(_padded(offsets, 0, torch.int32, device), _padded(index, -1, torch.int32, device),
                      _padded(weight, 0.0, torch.float32, device))
