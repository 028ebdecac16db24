"""Makes a prompt match its kept image tokens: one gather over ids, mask, positions and labels."""

from typing import NamedTuple

import torch
from torch import Tensor


class Shrunk(NamedTuple):
    """inputs for the untouched model; index [B, L'], the column each came from; valid [B, L'], False in padding."""

    inputs: dict
    index: Tensor
    valid: Tensor


def check_placeholders(is_media: Tensor, lengths: list[int], medium: str) -> None:
    """The prompt has a placeholder for every token of every image; ValueError otherwise."""
    found = int(is_media.sum())
    if found == sum(lengths):
        return
    each = f"{lengths[0]}" if len(set(lengths)) == 1 else ", ".join(map(str, lengths))
    raise ValueError(f"input_ids must hold {each} {medium} tokens for each of the {len(lengths)} {medium}s, "
                     f"{sum(lengths)} in all, got {found}")


def shrink(inputs: dict, times: Tensor, *, positions: str, pad_token_id: int, first_position: int = 0) -> Shrunk:
    """Drops, keeps or doubles tokens of the prompt, and everything that runs along with them.

    inputs: forward arguments; tensors of the shape of input_ids [B, L] are gathered along, others passed on.
    times: [B, L] int, how often each token stays: 0, 1, or 2 where a CLS token is put before it.
    positions: "original" ids of what stays, or "compact" ones from first_position on. position_ids [3, B, L] in
    `inputs` (mrope) stay original in either case, and get a first row that counts, from which packed sequences would
    be told.
    Padding columns are dropped and made anew, on the side where the prompt has them (left without any).
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(f"attention_mask must be {list(ids.shape)} like input_ids, got shape {list(mask.shape)}")
    exists = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    times = times.long() * exists
    ends = times.cumsum(1)
    lengths = ends[:, -1:]
    longest = int(lengths.max())
    slot = torch.arange(longest, device=ids.device).expand(len(ids), -1)
    right = bool((~exists[:, -1]).any()) and not bool((~exists[:, 0]).any())
    offset = torch.zeros_like(lengths) if right else longest - lengths
    valid = (slot >= offset) & (slot < offset + lengths)
    wanted = (slot - offset).clamp(min=0) + 1
    index = torch.searchsorted(ends, wanted).clamp_max(ids.shape[1] - 1)

    fill = {"input_ids": pad_token_id, "labels": -100}
    out = {}
    for name, value in inputs.items():
        along = isinstance(value, Tensor) and value.shape == ids.shape
        out[name] = value.gather(1, index).masked_fill(~valid, fill.get(name, 0)) if along else value
    out["attention_mask"] = valid.to(torch.long if mask is None else mask.dtype)
    where = inputs.get("position_ids")
    counted = (valid.long().cumsum(1) - 1).clamp_min(0) + first_position
    if where is not None and where.dim() == 3:
        where = where[-3:].gather(2, index.expand(3, -1, -1)).masked_fill(~valid, 0)
        out["position_ids"] = torch.cat([counted.masked_fill(~valid, 0)[None], where])
        return Shrunk(out, index, valid)
    if positions == "compact":
        where = counted
    else:
        every = (exists.long().cumsum(1) - 1).clamp_min(0) + first_position
        where = (every if where is None else where.expand_as(ids)).gather(1, index)
    out["position_ids"] = where.masked_fill(~valid, 0)
    return Shrunk(out, index, valid)
