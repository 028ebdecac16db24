"""FastV: after an early decoder layer, drop the image tokens that get least attention."""

from dataclasses import dataclass

from ..checked import integer
from .base import Selector, TokenView, settle


@dataclass(frozen=True)
class FastV(Selector):
    """score[n] = mean over heads of the attention from the last prompt token to n, in layer `layer` - 1.

    Chen et al., ECCV 2024, "An Image is Worth 1/2 Tokens After Layer 2". The rule is the authors'
    code, which reads the last token's row (the paper's text says the mean over all tokens). Layers
    before `layer` see all image tokens, layers from `layer` on the kept ones, at their original
    positions. `keep` counts image tokens after `layer`; the published setting is layer 2, half kept.
    Departures: the published code ranks the first sample and applies its choice to the whole batch
    without padding, at a fixed image span; here every sample has its own, wherever its images stand. The choice is
    made once, in the prompt's forward; with use_cache=False that is every step, as in the published in-place form.
    """

    name = "fastv"
    needs = frozenset({"attention"})
    place = "llm"
    positions = "original"

    layer: int = 2

    def __post_init__(self):
        settle(self, layer=integer("layer", self.layer, 1))  # a layer before it has to give the scores

    def score(self, view: TokenView):
        return view.need("attention")

    def flops(self, tokens, width, keep):
        return 2 * tokens * width  # one query row against the keys
