"""The columns and the mask of a stage inside the language model: what its layers see of the prompt."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers.masking_utils import create_causal_mask

from ..ops import gather_tokens, merge_tokens
from ..plan import TokenPlan
from ..selectors.base import equal


def columns_of(wanted: Tensor, longest: int) -> Tensor:
    """[B, N] int64, the columns where `wanted` [B, L] is True, ascending, -1 padded to the longest row's N."""
    length = wanted.shape[1]
    column = torch.arange(length, device=wanted.device)
    found = torch.where(wanted, column, length).sort(dim=1).values[:, :longest]
    return found.masked_fill(found == length, -1)


def text_behind(images: Tensor, columns: Tensor, exists: Tensor | None) -> Tensor:
    """[B, T] int64, the columns of the text behind the image tokens, which are at `columns`; -1 padded."""
    is_text = ~images & (torch.arange(images.shape[1], device=images.device) > columns.amax(1, keepdim=True))
    is_text = is_text if exists is None else is_text & exists
    return columns_of(is_text, int(is_text.sum(1).max()))


def rows_at(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, L, C] at `columns` [B, N]; what stands in padding is column 0."""
    return x.gather(1, columns.clamp_min(0)[..., None].expand(-1, -1, x.shape[2]))


def keys_at(keys: Tensor, columns: Tensor) -> Tensor:
    where = columns.clamp_min(0)[:, None, :, None]
    return keys.gather(2, where.expand(-1, keys.shape[1], -1, keys.shape[3]))


@dataclass
class Stage:
    """What layers see from one stage to the next; of a prompt's first layers, everything.

    kept: [B, L'] int32 columns of the prompt, -1 padded. exists: [B, L'] bool, None: all do. images: [B, L'] bool.
    ordinal: [B, N'] int32, which of the prompt's image tokens each is that is left, -1 padded; counts: how many.
    local: `kept` as columns of what was seen before. merge: (columns of image tokens before, lists, columns after).
    """

    kept: Tensor
    exists: Tensor | None
    images: Tensor
    ordinal: Tensor
    counts: list[int]
    local: Tensor | None = None
    merge: tuple | None = None
    position_embeddings: tuple | None = None
    attention_mask: Tensor | None = None

    @property
    def width(self) -> int:
        return self.kept.shape[1]

    def to(self, device) -> "Stage":
        """The columns on another device; what every layer gets by itself is left out."""
        if self.kept.device == device:
            return self
        kept, images, ordinal = (x.to(device) for x in (self.kept, self.images, self.ordinal))
        return Stage(kept, None if self.exists is None else self.exists.to(device), images, ordinal, self.counts)

    def narrow(self, hidden: Tensor) -> Tensor:
        """Hidden states of the layer before as this stage's layers see them."""
        out = gather_tokens(hidden, self.local).tokens
        if self.merge is None:
            return out
        before, lists, after = self.merge
        merged = merge_tokens(rows_at(hidden, before), *lists)
        after = after.masked_fill(after < 0, self.width)[..., None].expand_as(merged)
        return torch.cat([out, out[:, :1]], dim=1).scatter(1, after, merged)[:, : self.width]

    def prepare(self, module, hidden: Tensor, cache, embeddings, own: Tensor | None) -> None:
        """Positions and mask of the prompt itself, which every layer of the stage shares.

        own: the mask [B, 1, L, S] of the whole prompt, where causality is not all there is to it.
        """
        cos_sin = (e.to(hidden.device).expand(len(hidden), -1, -1) for e in embeddings)
        self.position_embeddings = tuple(gather_tokens(e, self.kept).tokens for e in cos_sin)
        if own is None or len(own.shape) == 2:  # flash attention is told what exists, and nothing else
            self.attention_mask = _mask(module, hidden, cache, self.exists)
        else:
            self.attention_mask = self._narrowed(own.to(hidden.device))

    def _narrowed(self, own):
        """Rows and columns of a mask at what stays; columns of a static cache that are still empty follow."""
        where, there = self.kept.long().clamp_min(0), self.kept >= 0
        if not isinstance(own, Tensor):  # flex attention's

            def seen(b, h, row, column):
                before = own.mask_mod(b, h, where[b, row], where[b, column])
                return (before & there[b, row] & there[b, column]) | (row == column)

            return create_block_mask(seen, len(where), None, self.width, self.width, device=where.device)
        hidden = torch.finfo(own.dtype).min if own.is_floating_point() else False
        seen = 0 if own.is_floating_point() else True
        rows = own.expand(len(where), -1, -1, -1).gather(2, where[:, None, :, None].expand(-1, 1, -1, own.shape[3]))
        both = rows.gather(3, where[:, None, None].expand(-1, 1, self.width, -1))
        both = both.masked_fill(~there[:, None, None], hidden)
        # A row of padding sees itself: what sees nothing may become NaN, and NaN times zero is NaN.
        alone = ~there[:, None, :, None] & torch.eye(self.width, dtype=torch.bool, device=own.device)
        both = both.masked_fill(alone, seen)
        static = own.shape[3] > own.shape[2]
        empty = own.shape[3] - self.width if static else 0
        return torch.cat([both, both.new_full((*both.shape[:3], empty), hidden)], dim=3)

    def step(self, module, hidden: Tensor, cache, tail: Tensor | None, past: int) -> None:
        """The mask of a step behind the prompt: `past` tokens were seen since, `tail` [B, .] says which of them and of
        the step's own exist. hidden: as the first layer gets it, of any width."""
        depth, new = module.self_attn.layer_idx, past + hidden.shape[1]
        held = int(cache.get_seq_length(depth))
        if held != self.width + past:
            raise ValueError(f"past_key_values must hold {self.width + past} tokens in layer {depth}, {self.width} of "
                             f"the pruned prompt and {past} behind it, got {held}: its layers differ in length, so "
                             "shorten it by crop(-n), which takes n tokens off each, not to a length")
        mask = None
        if self.exists is not None or tail is not None:
            mask = torch.ones(len(self.kept), self.width, dtype=torch.bool, device=hidden.device)
            mask = mask if self.exists is None else self.exists.to(hidden.device)
            mask = mask.repeat_interleave(len(hidden) // len(mask), dim=0)  # one prompt continued in several ways
            tail = mask.new_ones(len(mask), new) if tail is None else tail
            mask = torch.cat([mask, tail.to(mask.device)], dim=1)
        self.attention_mask = _mask(module, hidden, cache, mask)


def _mask(module, hidden, cache, mask):
    if mask is None and getattr(cache, "is_compileable", False):  # flash attention would see its empty columns
        seen = int(cache.get_seq_length(module.self_attn.layer_idx)) + hidden.shape[1]
        mask = torch.ones(len(hidden), seen, dtype=torch.bool, device=hidden.device)
    config = getattr(module.self_attn.config, "budgetprune_base", None) or module.self_attn.config
    return create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=mask, past_key_values=cache,
                              position_ids=None, layer_idx=module.self_attn.layer_idx)


def next_stage(seen: Stage, columns: Tensor, plan: TokenPlan, counts: list[int], lengths: list[int]) -> Stage:
    """The columns that a plan for the image tokens at `columns` leaves: `counts` of them, `lengths` with the words."""
    width, there = seen.width, plan.kept >= 0
    chosen = columns.gather(1, plan.kept.long().clamp_min(0)).masked_fill(~there, width)
    stay = ~seen.images if seen.exists is None else ~seen.images & seen.exists
    stay = torch.cat([stay, stay[:, :1]], dim=1).scatter(1, chosen, True)[:, :width]
    local = columns_of(stay, max(lengths))
    exists = local >= 0
    images = seen.images.gather(1, local.clamp_min(0)) & exists
    kept = seen.kept.gather(1, local.clamp_min(0)).masked_fill(~exists, -1)
    ordinal = seen.ordinal.gather(1, plan.kept.long().clamp_min(0)).masked_fill(~there, -1)
    merge = None if plan.merge is None else (columns, plan.merge, columns_of(images, max(counts)))
    exists = None if equal(lengths) else exists
    return Stage(kept, exists, images, ordinal, counts, local.int(), merge)
