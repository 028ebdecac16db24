"""Decides which vision tokens stay under a budget, and learns to."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..checked import flag, integer, number, one_of
from ..ops import gumbel_topk, select_topk
from .budget_embedding import BudgetEmbedding
from .relaxation import inclusion_probabilities

FUSIONS = ("post", "encoder")
CONDITIONINGS = ("add", "concat", "dot", "cross", "none")
NOISE_OF = {"race": "gumbel", "softmax": "gumbel", "fermi": "logistic"}


class ControllerOutput(NamedTuple):
    """logits [B, N]; gate [B, N], exactly 0 or 1, with gradient in training; kept [B, Kmax] int32 ascending."""

    logits: Tensor
    gate: Tensor
    kept: Tensor


def options_of(tau: float, use_cls: bool, estimator: str, fusion: str, conditioning: str,
               hidden_dim: int | None) -> dict:
    """The options of a controller, checked; TypeError and ValueError name the one that is wrong."""
    if not number("tau", tau) > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    return {"tau": float(tau), "use_cls": flag("use_cls", use_cls),
            "estimator": one_of("estimator", estimator, sorted(NOISE_OF)), "fusion": one_of("fusion", fusion, FUSIONS),
            "conditioning": one_of("conditioning", conditioning, CONDITIONINGS),
            "hidden_dim": None if hidden_dim is None else integer("hidden_dim", hidden_dim, 1)}


class VisionTokenController(nn.Module):
    """Budget-conditioned logits per patch, and from them exactly K patches.

    Training: hard Gumbel top-K, gradient by `estimator`. Inference: the K largest logits, no noise.

    vision_dim: C of the patch features. num_patches: N; each position has a learned bias on its logit. The biases begin
        apart (normal, 0.5): patches that look alike, those of one object, then come to different ranks, and a small
        budget is spread over objects. None: images of any size, and no such bias.
    tau: temperature of the selection; divides the logits (race, fermi) or the noisy logits (softmax).
    use_cls: CLS takes part: where the model keeps it, it is always kept; where the model drops it, it is
        put first, so that [B, 1+K, C] reaches the projector.
    estimator: "race", "fermi" or "softmax", see ops.gumbel_topk.
    fusion: what represents the budget: "post": its embedding, which joins behind the encoder; "encoder": what the
        encoder made of a budget token among its patches, see VisionEncoderWithBudgetToken. Then features are
        [B, N+1, C], the budget's state last, or it is given apart, as `state`; it is never kept.
    conditioning: how that representation meets the patches: "add" or "concat" into the per-patch MLP, "dot": its dot
        product with each patch, behind a learned matrix, is added to the logit, "cross": it attends to the patches and
        its reading is added to each of them, "none": logits without budget.
    hidden_dim: width of the per-patch MLP. state_dim: width of the budget's state, None: vision_dim.
    """

    def __init__(self, vision_dim: int, num_patches: int | None, tau: float = 5.0, use_cls: bool = True, *,
                 estimator: str = "race", fusion: str = "post", conditioning: str = "add",
                 hidden_dim: int | None = None, state_dim: int | None = None):
        super().__init__()
        options_of(tau, use_cls, estimator, fusion, conditioning, hidden_dim)
        self.num_patches, self.tau, self.use_cls = num_patches, tau, use_cls
        self.estimator, self.fusion, self.conditioning = estimator, fusion, conditioning
        width, state_dim = hidden_dim or vision_dim, state_dim or vision_dim
        self.norm = nn.LayerNorm(vision_dim)
        self.position = nn.Parameter(0.5 * torch.randn(num_patches)) if num_patches else None
        self.budget = None if conditioning == "none" else BudgetEmbedding(vision_dim) if fusion == "post" else \
            nn.Sequential(nn.LayerNorm(state_dim), nn.Linear(state_dim, vision_dim))
        self.reader = nn.MultiheadAttention(vision_dim, 1, batch_first=True) if conditioning == "cross" else None
        self.meet = nn.Linear(vision_dim, vision_dim, bias=False) if conditioning == "dot" else None
        joined = vision_dim * (2 if conditioning == "concat" else 1)
        self.head = nn.Sequential(nn.Linear(joined, width), nn.GELU(), nn.Linear(width, 1))

    def flops(self, tokens: int) -> int:
        """2 x multiply-adds of the logits of one sample."""
        per_patch = sum(layer.weight.numel() for layer in self.head if isinstance(layer, nn.Linear))
        embedding = self.budget.modules() if self.budget else ()
        once = sum(layer.weight.numel() for layer in embedding if isinstance(layer, nn.Linear))
        width = self.norm.normalized_shape[0]
        read = 2 * width * width * (1 + tokens) + 2 * tokens * width if self.reader else 0
        meet = tokens * width * (width + 1) if self.meet else 0
        return 2 * (tokens * per_patch + once + read + meet)

    def logits(self, features: Tensor, budget: Tensor, state: Tensor | None = None) -> Tensor:
        """[B, N] from features [B, N, C] and budgets [B], the fraction kept; or from the budget's state [B, C']."""
        if features.dim() != 3 or self.num_patches not in (None, features.shape[1]):
            raise ValueError(f"features must be [B, {self.num_patches or 'N'}, C], got shape {list(features.shape)}")
        patches, dot = self.norm(features.to(self.norm.weight.dtype)), None
        if self.budget is not None:
            embedded = self.budget(budget if self.fusion == "post" else state.to(patches.dtype))[:, None]
            if self.conditioning == "cross":
                embedded = embedded + self.reader(embedded, patches, patches, need_weights=False)[0]
            if self.conditioning == "concat":
                patches = torch.cat([patches, embedded.expand_as(patches)], dim=-1)
            elif self.conditioning == "dot":
                dot = (self.meet(patches) * embedded).float().sum(-1) / patches.shape[-1] ** 0.5
            else:
                patches = patches + embedded
        logits = self.head(patches).squeeze(-1).float()
        logits = logits if dot is None else logits + dot
        return logits if self.position is None else logits + self.position.float()

    def shares(self, features: Tensor, keep, **asked: Tensor) -> Tensor:
        """[B, N] in [0, 1] with sum K: how much of each token is wanted, see relaxation.inclusion_probabilities."""
        counts, logits = self._heard(features, keep, asked)
        return inclusion_probabilities(logits, counts, tau=self.tau, estimator=self.estimator)

    def _heard(self, features, keep, asked):
        if self.fusion == "encoder" and "state" not in asked:
            features, asked = features[:, :-1], {**asked, "state": features[:, -1]}
        b, n = features.shape[:2]
        counts = TokenBudget(keep).counts([n] * b)
        budget = torch.tensor([k / n for k in counts], device=features.device)
        return counts, self.logits(features, budget, **asked)

    def forward(self, features: Tensor, keep: int | float | list | Tensor, *, key: Tensor | None = None,
                noise: bool = True, **asked: Tensor) -> ControllerOutput:
        """Selects. keep: a count or a fraction, for all samples or one per sample; 0 keeps one, N or more all.

        key: int64 [2] or [B, 2], needed in training; the same key draws the same noise on any device.
        noise: False, in training: choose as inference does, with the same gradient estimator.
        asked: what `logits` takes beside features and budget, in subclasses that look at more.
        """
        counts, logits = self._heard(features, keep, asked)
        same = counts[0] if len(set(counts)) == 1 else counts
        if self.training:
            if key is None:
                raise ValueError("key must be given in training: int64 [2], Philox seed and offset")
            gate, kept = gumbel_topk(logits, same, key=key, tau=self.tau, estimator=self.estimator,
                                     noise=NOISE_OF[self.estimator] if noise else "none")
        else:
            kept = select_topk(logits, same)
            n = logits.shape[1]
            padded = logits.new_zeros(len(logits), n + 1).scatter(1, kept.long().remainder(n + 1), 1.0)
            gate = padded[:, :n]
        return ControllerOutput(logits, gate, kept)
