"""Pruning with one count for every image, for hosts that reserve the image's place before they look at it.

Dimensions: B images, N patches, P rows in front of them (CLS), C channels, H heads, D channels of a head.
"""

import torch
from torch import Tensor

from ..budget import TokenBudget
from ..checked import LARGEST_SEED, integer
from ..ops import attention_received, gather_tokens, merge_tokens
from ..selectors import Selector, TokenView, build

FROM_TOWER = frozenset({"attention", "keys"})
KNOWN = FROM_TOWER | {"grid", "key"}


class FixedCount:
    """A method, and the number of tokens that it leaves of every image.

    Only what an image alone decides can be chosen so: the host also keeps the encoded image for the next question
    about it. What cannot is refused here, before any weight is loaded.

    Args:
        method, keep, options: as in budgetprune.prune; `keep` is one int or float.
        seed: of methods that draw; every image gets the same draw, whatever was encoded with it or before it.
    """

    def __init__(self, method: str, keep=None, seed: int = 0, **options):
        selector = build(method, **options)
        if reason := _reason_against(selector):
            raise ValueError(f"method must choose an exact count of image tokens from the image alone, got {method}: "
                             f"{reason}")
        if keep is None:
            raise ValueError(f"keep must be given: the image's place in the prompt is sized before {method} could "
                             "choose a count itself")
        if not isinstance(keep, (int, float)):
            raise TypeError(f"keep must be one int or float for all images, got {keep!r}")
        self.selector, self.budget = selector, TokenBudget(keep)
        self.seed = integer("seed", seed, most=LARGEST_SEED)

    @property
    def looks(self) -> bool:
        """Whether the method must see the tower's attention, in its block `layer`."""
        return bool(self.selector.needs & FROM_TOWER)

    @property
    def layer(self) -> int:
        return self.selector.tower_layer

    @property
    def after_projector(self) -> bool:
        """Whether the method chooses among what the projector gives, not what it gets."""
        return self.selector.after_projector

    def count(self, tokens: int) -> int:
        """How many of an image's `tokens` tokens stay."""
        return self.budget.counts([tokens])[0]

    def __call__(self, features: Tensor, grid: tuple[int, int], queries: Tensor | None = None,
                 keys: Tensor | None = None) -> Tensor:
        """[B, count(N), C] of `features` [B, N, C]; queries, keys: [B, H, P + N, D] where the method looks."""
        if "key" in self.selector.needs:
            rows = range(len(features))
            return torch.cat([self._one_draw(features[b:b + 1], grid, *(None if x is None else x[b:b + 1]
                                                                        for x in (queries, keys))) for b in rows])
        return self._one_draw(features, grid, queries, keys)

    def _one_draw(self, features, grid, queries, keys):
        images, tokens = features.shape[:2]
        keep, received = self.count(tokens), None
        if self.looks:
            prefix = keys.shape[2] - tokens
            if "attention" in self.selector.needs:
                received = self._received(queries[:, :, :1], keys)[:, prefix:]
            keys = keys[:, :, prefix:]
        key = torch.tensor([self.seed, 0], device=features.device) if "key" in self.selector.needs else None
        view = TokenView(features, attention=received, keys=keys, grid=grid, key=key)
        plan = self.selector.plan(view, [keep] * images)
        if plan.width != keep:
            raise ValueError(f"{self.selector.name} must keep {keep} of {tokens} tokens, kept {plan.width}")
        if plan.keeps_all(tokens):
            return features
        if plan.merge is not None:
            return merge_tokens(features, *plan.merge)
        return gather_tokens(features, plan.kept).tokens

    def _received(self, query, keys):
        if self.selector.one_head:
            query, keys = (x.transpose(1, 2).flatten(2)[:, None] for x in (query, keys))
        return attention_received(query, keys, rows="cls")


def _reason_against(selector: Selector) -> str | None:
    if selector.place == "llm":
        return "it ranks inside the language model, by the question, when the cache is laid out for all tokens"
    if selector.positions == "original":
        return "what it keeps must hold its original position ids, and the host numbers positions without gaps"
    if selector.trainable:
        return "it is trained, and the host loads no weights for it"
    if selector.after_projector and selector.needs & FROM_TOWER:
        return "it looks at the tower and at what the projector gives, which the host does not hold together"
    if more := selector.needs - KNOWN:
        return f"it needs {', '.join(sorted(more))}"
    return None
