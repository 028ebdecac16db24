"""Which tokens of each image stay, whatever the images' sizes: views for the method, and what it decides."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import attention_received, gather_tokens, merge_tokens
from ..plan import MergeLists, TokenPlan
from ..selectors import Selector, TokenView


class Probe:
    """Hears the queries and keys of one attention layer of the tower: [R, H, P+n, D], or one image at a time."""

    def __init__(self, cls: bool, one_head: bool):
        self.prefix, self.one_head, self.heard = int(cls), one_head, []

    def __call__(self, module, query: Tensor, key: Tensor, **kwargs) -> None:
        ends = kwargs.get("cu_seq_lens_q")
        if ends is None:
            self.heard.append((query, key))
        else:  # flash attention gets all images in one row
            lengths = ends.diff().tolist()
            self.heard += zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True)

    @torch.no_grad()
    def attention(self) -> Tensor:
        """[R, n, 1] attention that each patch gets: from CLS, or without one from all, mean over heads."""
        parts = [self._received(query, key) for query, key in self.heard]
        return self._joined([part[:, self.prefix:, None] for part in parts])

    @torch.no_grad()
    def keys(self) -> Tensor:
        """[R, n, H*D]."""
        return self._joined([key[:, :, self.prefix:].transpose(1, 2).flatten(2) for _, key in self.heard])

    @property
    def heads(self) -> int:
        return self.heard[0][1].shape[1]

    def _received(self, query, key):
        rows = "cls" if self.prefix else "all"
        query = query[:, :, :1] if self.prefix else query
        if self.one_head:
            query, key = (x.transpose(1, 2).flatten(2)[:, None] for x in (query, key))
        return attention_received(query, key, rows=rows)

    @staticmethod
    def _joined(parts):
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])[None]


@dataclass
class Looks:
    """What methods may look at of each image, beside its tokens; None where the method does not ask."""

    attention: list[Tensor] | None = None  # [N_i]
    keys: list[Tensor] | None = None  # [N_i, H*D]
    heads: int = 1
    text: Tensor | None = None  # [images, T, C']
    text_valid: Tensor | None = None  # [images, T]
    budget: list[Tensor] | None = None  # [C'']


@dataclass
class Group:
    """Images of one size, which a method sees together. A method judges a sample alone, so grouping changes nothing."""

    members: list[int]
    view: TokenView
    plan: TokenPlan | None = None


def groups_of(tokens, grids, looks: Looks, pruner, draws: bool) -> list[Group]:
    """tokens: [N_i, C] of each image, or one tensor [B, N, C]."""
    sizes: dict = {}
    for image, (x, grid) in enumerate(zip(tokens, grids, strict=True)):
        sizes.setdefault((len(x), grid), []).append(image)
    groups = []
    for (_, grid), members in sizes.items():
        def pick(values, members=members):
            return None if values is None else torch.stack([values[i] for i in members]).to(tokens[0].device)

        whole = isinstance(tokens, Tensor) and len(sizes) == 1
        x, keys = tokens if whole else pick(tokens), pick(looks.keys)
        view = TokenView(x, attention=pick(looks.attention), text=pick(looks.text), text_valid=pick(looks.text_valid),
                         keys=None if keys is None else keys.unflatten(2, (looks.heads, -1)).transpose(1, 2),
                         grid=grid, budget=pick(looks.budget), key=pruner.next_key(x, members) if draws else None)
        groups.append(Group(members, view))
    return groups


def plan_groups(groups: list[Group], selector: Selector, counts: list[int] | None) -> None:
    for group in groups:
        group.plan = selector.plan(group.view, None if counts is None else [counts[i] for i in group.members])


def gates_of(groups: list[Group], selector: Selector, counts: list[int], noise: bool) -> list[Tensor]:
    """[N_i] of each image: the hard gates of training."""
    gates: list = [None] * sum(len(group.members) for group in groups)
    for group in groups:
        drawn = selector.gate(group.view, [counts[i] for i in group.members], noise)
        for image, gate in zip(group.members, drawn, strict=True):
            gates[image] = gate
    return gates


def reduced(features: Tensor, plan: TokenPlan, prefix: int = 0, order: Tensor | None = None) -> Tensor:
    """[sum of output tokens, C]: what stays of features [B, P+N, C], with the first P rows of each before it.

    order: [B, M], of the output tokens of a merging plan.
    """
    counts, kept = plan.counts(), plan.kept
    if plan.merge is not None:  # then what stays is all output tokens of a sample, the first of its row
        merged = merge_tokens(features[:, prefix:], *plan.merge)
        if order is not None:
            merged = merged.gather(1, order[..., None].expand_as(merged))
        features = torch.cat([features[:, :prefix], merged], dim=1) if prefix else merged
        place = torch.arange(plan.width, dtype=torch.int32, device=kept.device).expand(len(kept), -1)
        kept = place if plan.lengths is None else place.masked_fill(place >= plan.lengths[:, None], -1)
    total = sum(counts) + prefix * len(features)
    return gather_tokens(features, kept, prefix=prefix, packed=True, total=total).tokens


def anchors(plan: TokenPlan, tokens: int) -> tuple[Tensor, Tensor | None]:
    """Where in its image each output token belongs: ([B, N] bool, the places that stay taken; [B, M] int64, the output
    tokens by ascending place, None where they are so already).

    A kept token belongs to its own place, a merged one to that of the first entry of its list. An output token whose
    list is empty, or begins with another's token, gets a place that is free.
    """
    if plan.merge is None:
        return plan.mask(tokens), None
    offsets, index = plan.merge.offsets, plan.merge.index
    entry = torch.arange(index.shape[1], dtype=torch.int32, device=index.device).expand_as(index).contiguous()
    row = torch.searchsorted(offsets.contiguous(), entry, right=True) - 1
    used = (index >= 0) & (row >= 0) & (row < plan.width)
    none = index.shape[1]
    first = entry.new_full((len(index), plan.width + 1), none)
    first = first.scatter_reduce(1, torch.where(used, row, plan.width), entry.masked_fill(~used, none), "amin")
    first = first[:, : plan.width].long()
    counts = torch.tensor(plan.counts(), device=index.device)[:, None]
    real = (first < none) & (torch.arange(plan.width, device=index.device) < counts)
    place = torch.where(real, index.gather(1, first.clamp_max(none - 1)).long(), tokens)
    taken = torch.zeros(len(index), tokens + 1, dtype=torch.bool, device=index.device).scatter(1, place, True)[:, :-1]
    free = ~taken
    taken = taken | (free & (free.cumsum(1) <= counts - taken.sum(1, keepdim=True)))
    return taken, place.argsort(dim=1, stable=True)


def joined(groups: list[Group]) -> TokenPlan:
    """One plan for all images in their order, padded to the longest."""
    if len(groups) == 1:
        return groups[0].plan
    plans = [group.plan for group in groups]
    order = torch.tensor([image for group in groups for image in group.members]).argsort()
    counts = torch.tensor([n for plan in plans for n in plan.counts()])[order]

    def stacked(parts, fill):
        width = max(part.shape[1] for part in parts)
        rows = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts]
        return torch.cat(rows)[order.to(parts[0].device)]

    kept, merge = stacked([plan.kept for plan in plans], -1), None
    if any(plan.merge is not None for plan in plans):
        lists = [plan.merge or _itself(plan) for plan in plans]
        widest = max(m.width for m in lists)
        ends = [torch.cat([m.offsets, m.offsets[:, -1:].expand(-1, widest - m.width)], dim=1) for m in lists]
        merge = MergeLists(stacked(ends, 0), stacked([m.index for m in lists], -1),
                           stacked([m.weight for m in lists], 0.0))
    return TokenPlan(kept, merge, counts.to(kept.device))


def _itself(plan):
    offsets = torch.arange(plan.kept.shape[1] + 1, dtype=torch.int32, device=plan.kept.device)
    return MergeLists(offsets.expand(len(plan.kept), -1), plan.kept, torch.ones_like(plan.kept, dtype=torch.float32))
