"""One prompt with a latency token in it, and what was decided at it: which layers run for which rows.

Dimensions: B rows, L columns of the caller's prompt, L + 1 with the latency token, S layers that may be skipped.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .turns import held


class DepthPlan(NamedTuple):
    """What runs. counts: layers (or units) of each row beyond the prefix. runs: [B, layers] bool, the prefix included.
    gate: [B, S], or [B, S, 2, H] in form "heads"; 1 where something runs."""

    counts: list[int]
    runs: Tensor
    gate: Tensor


@dataclass
class DepthState:
    """Where the latency token stands in a prompt, and, once its first layers have run, the plan.

    at: [B] int64, its column. length: L. prefix: layers that always run. end: [..., B, 1] position id of the prompt's
    last token that exists, the latency token included, None where the model counts by itself.
    rows: of each layer behind the prefix, None where it runs for all rows, else those that it runs for, int64.
    gated: in training every layer runs for all rows, and `gate` keeps its gradient.
    whole: of each layer, whether all of its heads run in the rows that it runs for.
    """

    pruner: object
    counts: list[int]
    at: Tensor
    length: int
    prefix: int
    answer_from: str
    gated: bool
    end: Tensor | None = None
    gate: Tensor | None = None
    rows: list[Tensor | None] | None = None
    whole: list[bool] | None = None

    @property
    def is_latency(self) -> Tensor:
        """[B, L + 1] bool."""
        return torch.arange(self.length + 1, device=self.at.device) == self.at[:, None]

    def widened(self, x: Tensor, new) -> Tensor:
        """x [..., B, L] or [B, L, C] with `new` in the latency token's column."""
        column = torch.arange(self.length + 1, device=x.device)
        at = self.at.to(x.device)[:, None]
        index = (column - (column > at).long()).clamp_max(self.length - 1)
        here = column == at
        if x.is_floating_point() and x.dim() == 3:
            return torch.where(here[..., None], new, x.gather(1, index[..., None].expand(-1, -1, x.shape[2])))
        shape = (*x.shape[:-2], *index.shape)
        x = x.expand(*x.shape[:-2], len(index), -1)
        return torch.where(here, new, x.gather(-1, index.expand(shape)))

    def narrowed(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, L + 1, C] as the caller counts columns, [B, L, C]; the latency token's stand where the
        prompt's last token's would, if the answer begins from it."""
        column = torch.arange(self.length, device=hidden.device)
        first = self.at.to(hidden.device)[:, None] - int(self.answer_from == "latency")
        index = column + (column >= first).long()
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))

    @torch.compiler.disable  # which layers run is read back from the device, once per prompt
    def decide(self, hidden: Tensor, cache) -> None:
        """The plan, from what the layers of the prefix give, [B, L + 1, C]. Later calls, which checkpointing makes,
        change nothing."""
        if self.gate is not None:
            return
        at = self.at.to(hidden.device)
        token = hidden[torch.arange(len(at), device=hidden.device), at]
        self.gate = self.pruner.choose(token, self.counts, gated=self.gated)
        here = self.gate.detach().flatten(2).amax(2) if self.gate.dim() == 4 else self.gate.detach()
        runs = (here > 0).cpu()
        always = torch.ones(len(runs), self.prefix, dtype=torch.bool)
        self.pruner.record(DepthPlan(self.counts, torch.cat([always, runs], 1), self.gate.detach()))
        if self.gated:
            return
        self.rows = [None if run.all() else run.nonzero()[:, 0].to(hidden.device) for run in runs.T]
        if self.gate.dim() == 4:
            partly = self.gate.flatten(2).amin(2) < here
            self.whole = (~partly.any(0)).tolist()
        self.pruner = None  # caches live on, and are copied
        if cache is not None:
            cache.budgetprune_depth = self

    def repeated(self, rows: int) -> "DepthState":
        """The plan for `rows` rows, each of a prompt of its own or several of each, one after another."""
        times = rows // len(self.at)
        if times * len(self.at) != rows:
            raise ValueError(f"input_ids must have {len(self.at)} rows, as many as past_key_values, or a multiple, "
                             f"got {rows}")
        if times == 1:
            return self
        chosen = [None if r is None else (r[:, None] * times + torch.arange(times, device=r.device)).flatten()
                  for r in self.rows]
        end = None if self.end is None else self.end.repeat_interleave(times, -2)
        return DepthState(None, self.counts, self.at.repeat_interleave(times), self.length, self.prefix,
                          self.answer_from, False, end, self.gate.repeat_interleave(times, 0), chosen, self.whole)

    def continued(self, cache, kwargs: dict, new: Tensor) -> dict:
        """Arguments of the decoder for `new` [B, n, C] behind the prompt."""
        count, past = new.shape[1], held(cache) - self.length - 1
        mask = flat_mask(kwargs.get("attention_mask"))
        if mask is not None:
            if mask.shape[1] != self.length + past + count:
                raise ValueError(f"attention_mask must be over the {self.length + past} tokens that past_key_values "
                                 f"stands for (it holds a latency token beside them) and the {count} new ones, got "
                                 f"{mask.shape[1]} columns; give generate() the new tokens alone")
            prompt, tail = mask[:, : self.length], mask[:, self.length:]
            kwargs["attention_mask"] = torch.cat([self.widened(prompt, 1), tail], 1)
        if self.end is not None:
            tail = new.new_ones(len(new), past + count, dtype=torch.long) if mask is None else tail.long()
            kwargs["position_ids"] = self.end.to(new.device) + tail.cumsum(1)[:, past:]
        elif kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"] + 1
        return kwargs


def flat_mask(mask) -> Tensor | None:
    """The mask as [B, L]; ValueError: another form of it, which a static cache makes."""
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise ValueError("attention_mask must be [B, L] where layers are skipped, got "
                         f"{f'shape {list(mask.shape)}' if isinstance(mask, Tensor) else type(mask).__name__}; static "
                         "caches have no room for the latency token: use a dynamic one")
    return mask
