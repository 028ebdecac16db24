"""PyramidDrop: drop image tokens in stages through the decoder, each by the attention of the last token."""

from dataclasses import dataclass

from .base import Selector, TokenView, fractions, settle, spread


@dataclass(frozen=True)
class PyramidDrop(Selector):
    """score[n] = mean over heads of the attention from the last prompt token to n, ranked anew at every stage.

    Xing et al., CVPR 2025, "PyramidDrop". The published stages are before layers 8, 16 and 24 of 32 and leave 1/2, 1/4
    and 1/8 of the image tokens: `at` are these layers as fractions of the depth, and `keep` counts image tokens after
    the last stage. Between them the counts fall by equal ratios, so that keep = N / 8 (72 of 576) is the published
    setting, 270 tokens in the mean over the layers.

    Departures: the scores are read in the layer before the stage, where that attention is computed anyway; the
    published code projects all tokens a second time, by the weights of the layer behind it. Kept tokens keep their
    original positions; the published code numbers them anew at every stage. In training the last token is that of the
    sequence, not of the instruction. The published code needs right padding and one image a sample; here every sample
    has its own choice, wherever its images stand.
    """

    name = "pyramiddrop"
    needs = frozenset({"attention"})
    place = "llm"
    positions = "original"

    at: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self):
        settle(self, at=fractions(self.at))

    def layers(self, depth):
        return spread(self.at, depth)

    def stage_keep(self, keep, stage, tokens):
        return max(keep, round(tokens * (keep / tokens) ** ((stage + 1) / len(self.at))))

    def score(self, view: TokenView):
        return view.need("attention")

    def flops(self, tokens, width, keep):
        seen = [tokens, *(self.stage_keep(keep, stage, tokens) for stage in range(len(self.at) - 1))]
        return sum(2 * n * width for n in seen)  # one query row against the keys of each stage
