"""AdaLLaVA: a budget decides which of the language model's later layers run; and its selection by its definitions.

Xu et al., "Learning to Inference Adaptively for Multimodal Large Language Models", 2025. The functions are the
published rounds of sampling one after another, in plain torch: what ops.gumbel_topk, which draws the same sets in one,
is compared with. Dimensions: B rows, N entries that can be chosen, C channels, S layers that may be skipped, H heads.
"""

import torch
from torch import Tensor, nn

from ..checked import integer, number, one_of
from ..ops import gumbel_topk, select_topk
from .budget_embedding import BudgetEmbedding
from .controller import NOISE_OF
from .depth import DepthScheduler

ANSWERS = ("latency", "prompt")


class AdaLLaVA(DepthScheduler):
    """A latency token at the prompt's end; one linear layer on its hidden state after the prefix; the n largest.

    Its embedding: n / (units + 1) as 128 sines and cosines, LayerNorm, Linear, GELU, Linear. Training keeps exactly n
    by ops.gumbel_topk, inference by ops.select_topk; so no term of the loss speaks of the budget.

    tau: temperature of the selection; 5 and never lowered, as published. estimator: "softmax" is the published one,
    see ops.gumbel_topk. answer_from: who predicts the first word of the answer: the "latency" token, as published,
    which a frozen model has to learn to read, or the "prompt"'s last, as without it.

    Form "heads": a layer's attention heads, and its groups of neurons, stand in the order of their logits, `rank` of
    either making a unit, whose score is the mean of them; the n best units of all layers run. So the best heads of a
    layer run first, as many as groups. Departure: published, each unit falls on the layer of one entry drawn from all,
    up to 64 rounds one after another, and its heads are drawn in there; here all are one draw.

    Source: Xu et al., 2025. Other departures: budgets are whole numbers, which its floor loses; logits as one row of
    ops.gumbel_topk, which has the distribution of the published rounds (form "layers").
    """

    name = "adallava"

    def __init__(self, hidden: int, layers: int, heads: int, *, tau: float = 5.0, estimator: str = "softmax",
                 answer_from: str = "latency", **shape):
        super().__init__(layers, heads, **shape)
        if not number("tau", tau) > 0:
            raise ValueError(f"tau must be positive, got {tau}")
        self.tau, self.estimator = float(tau), one_of("estimator", estimator, sorted(NOISE_OF))
        self.answer_from = one_of("answer_from", answer_from, ANSWERS)
        self.latency = BudgetEmbedding(hidden, num_freqs=128, hidden_dim=hidden)
        self.head = nn.Linear(hidden, self.switchable * (1 if self.form == "layers" else 2 * heads))

    def options(self) -> dict:
        return {**super().options(), "tau": self.tau, "estimator": self.estimator, "answer_from": self.answer_from}

    def flops(self) -> int:
        """2 x multiply-adds of one prompt's plan; the token's own way through the layers is the prompt's."""
        linear = [part for part in (*self.latency.mlp, self.head) if isinstance(part, nn.Linear)]
        return 2 * sum(part.weight.numel() for part in linear)

    def token(self, counts: list[int]) -> Tensor:
        """[B, C], the embedding of the latency token of rows that may run `counts` units."""
        share = torch.tensor([n / (self.units + 1) for n in counts], device=self.head.weight.device)
        return self.latency(share)

    def forward(self, hidden: Tensor, counts: list[int], *, key: Tensor | None = None, noise: bool = True) -> Tensor:
        """What runs, exactly 0 or 1: [B, S], or [B, S, 2, H] in form "heads" (attention heads, groups of neurons).

        hidden: [B, C], the latency token's after the prefix. key: int64 [2], makes the choice a gate with a gradient;
        None: that of inference, without noise. noise: False, with a key: inference's choice, with the gradient.
        """
        logits = self.head(hidden.to(self.head.weight.dtype)).float()
        scores, unit = logits, None
        if self.form == "heads":
            # Which unit of its layer each head is of: its place in the order of the logits.
            ranked = logits.detach().view(-1, 2, self.heads).argsort(dim=2, descending=True, stable=True)
            unit = ranked.argsort(dim=2) // self.rank
            each = logits.new_zeros(len(ranked), self.heads // self.rank)
            members = logits.view(-1, 2 * self.heads) / (2 * self.rank)
            scores = each.scatter_add(1, unit.flatten(1), members).view(len(hidden), self.units)
        if key is None:
            kept = select_topk(scores, counts).long().remainder(self.units + 1)
            gate = scores.new_zeros(len(scores), self.units + 1).scatter(1, kept, 1.0)[:, : self.units]
        else:
            gate, _ = gumbel_topk(scores, counts, key=key, tau=self.tau, estimator=self.estimator,
                                  noise=NOISE_OF[self.estimator] if noise else "none")
        if unit is None:
            return gate
        return gate.reshape(len(unit), -1).gather(1, unit.flatten(1)).view(-1, self.switchable, 2, self.heads)


def masked_gumbel_softmax(logits: Tensor, mask: Tensor | None = None, *, tau: float = 5.0,
                          generator: torch.Generator | None = None) -> Tensor:
    """One entry of each row, drawn by softmax(logits) over what `mask` leaves: one-hot [B, N], straight through.

    The forward value is the one-hot vector of the largest (logits + Gumbel noise) / tau, the gradient that of their
    softmax. mask: [B, N] bool, True where an entry cannot be drawn; one of each row must be left.
    ValueError: nothing is left in a row, or tau is not above 0.
    """
    soft = _noisy_softmax(logits, mask, tau, generator)
    return _straight_through(torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0), soft)


def n_times_gumbel_softmax(logits: Tensor, n: int, *, tau: float = 5.0, training: bool = True,
                           generator: torch.Generator | None = None) -> Tensor:
    """[B, N] with exactly n ones per row: n rounds of masked_gumbel_softmax, none drawn twice; their sum.

    Every round draws fresh noise. training: False takes neither noise nor tau: the n largest logits.
    ValueError: n is not in [0, N].
    """
    integer("n", n, 0, logits.shape[1])
    if not training:
        return torch.zeros_like(logits).scatter(1, logits.topk(n, dim=1).indices, 1.0)
    chosen = torch.zeros_like(logits)
    for _ in range(n):
        chosen = chosen + masked_gumbel_softmax(logits, chosen.detach() > 0.5, tau=tau, generator=generator)
    return chosen


def masked_gumbel_softmax_topk(logits: Tensor, k: int, mask: Tensor | None = None, *, tau: float = 5.0,
                               generator: torch.Generator | None = None) -> Tensor:
    """[B, N] with exactly k ones per row: the k largest of one noisy softmax, straight through.

    AdaLLaVA takes the heads of a unit so, within the layer that the unit fell on: one draw of noise for all k.
    ValueError: fewer than k entries are left in a row.
    """
    integer("k", k, 0, logits.shape[1])
    if mask is not None and int((~mask).sum(1).min()) < k:
        raise ValueError(f"mask must leave k={k} entries of each row, got {int((~mask).sum(1).min())}")
    soft = _noisy_softmax(logits, mask, tau, generator)
    ranked = soft if mask is None else soft.masked_fill(mask, -1.0)  # a softmax may be 0 where it is not masked
    return _straight_through(torch.zeros_like(soft).scatter(1, ranked.topk(k, dim=1).indices, 1.0), soft)


def latency_quantizing(latency: Tensor, prefix: int, total: int, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    """(units beyond the prefix int64 [B], what is encoded of them float [B]) of a budget, the fraction `latency` [B].

    units = max(0, floor(total * latency) - prefix), encoded as units / (total - prefix + 1): the 1 keeps the full
    budget's sines apart from those of none. total: layers (or units of heads), of which `prefix` always run.

    The published rule floors in the dtype of `latency`, where total * (n / total) may lie just below n, and loses a
    unit then: for 13B in units of 8 heads, 200 in all, n = 105, 106, 117 and 118 do in float32. exact: rounds to the
    nearest instead, so that n / total is n in every dtype that tells the levels apart.
    ValueError: outside [0, 1].
    """
    if not bool(((latency >= 0) & (latency <= 1)).all()):
        raise ValueError(f"latency must be in [0, 1], got {latency.tolist()}")
    wanted = (latency.double() * total).round() if exact else (latency * total).floor()
    units = (wanted.long() - prefix).clamp_min(0)
    return units, units.float() / (total - prefix + 1)


def _noisy_softmax(logits, mask, tau, generator):
    if not tau > 0:
        raise ValueError(f"tau must be above 0, got {tau}")
    if mask is not None and bool(mask.all(1).any()):
        raise ValueError("mask must leave an entry of each row, got a row of True")
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    z = (logits + noise) / tau
    return (z if mask is None else z.masked_fill(mask, -torch.inf)).softmax(1)


def _straight_through(hard, soft):
    return hard + (soft - soft.detach())  # in this order the value is exactly 0 or 1
