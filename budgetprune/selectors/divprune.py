"""DivPrune: the tokens that lie farthest apart."""

from dataclasses import dataclass
from typing import ClassVar

from ..ops import cosine_similarity_matrix, greedy_select
from .base import Selector, TokenView, ragged


@dataclass(frozen=True)
class DivPrune(Selector):
    """Greedy max-min: always the token whose least distance 1 - cos(x_i, x_j) to those chosen is largest.

    Alvar et al., CVPR 2025, "DivPrune"; the rule is the authors' code, before the first decoder layer. The first token
    is the one whose nearest other token is farthest. x are projected tokens; what stays keeps its order.

    Departures: every image is pruned by its own tokens (published: the first of the batch decides, at a fixed image
    span); cosines are float32 (published: the model's dtype); a token of zeros has cosine 0 with all (published: NaN)
    and none is taken twice.
    """

    name = "divprune"
    after_projector: ClassVar[bool] = True

    def plan(self, view: TokenView, keep):
        keep = self.require(keep)
        same = keep[0] if len(set(keep)) == 1 else keep
        return ragged(greedy_select(cosine_similarity_matrix(view.tokens), same, method="max_min"), keep)

    def flops(self, tokens, width, keep):
        return 2 * tokens * tokens * width  # the cosines; the greedy steps only compare
