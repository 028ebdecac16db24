"""Average pooling with a trained projector behind it: the floor of compressors."""

from torch import nn

from ..checked import one_of
from ..ops import merge_tokens
from ..selectors.base import TokenView
from .base import Compressor, Site, linear_flops


class PoolingProjector(Compressor):
    """token[k] = layer(mean of the patches in rectangle k), rectangles and means those of the method pooling.

    No paper's method, a floor: what training a projector behind averages gains, and so what a compressor has to beat
    that is trained as well. The projector is the model's two-layer one, trained on the averages.

    layer: what stands between the averages and the projector: "none", "linear", or "mlp" (linear, GELU, linear), each
        as wide as the features.
    """

    name = "pooling_projector"

    def __init__(self, layer: str = "none", train_projector: bool = True):
        super().__init__(train_projector)
        self._options["layer"] = one_of("layer", layer, ("none", "linear", "mlp"))
        if layer == "none" and not train_projector:
            raise ValueError("train_projector must be True with layer='none', or nothing would learn: that is the "
                             "method pooling")

    def make(self, site: Site, keep: int) -> None:
        c = site.width
        parts = {"none": [], "linear": [nn.Linear(c, c)], "mlp": [nn.Linear(c, c), nn.GELU(), nn.Linear(c, c)]}
        self.layer = nn.Sequential(*parts[self._options["layer"]])

    def forward(self, patches, layers=None, text=None):
        plan = self.plan(TokenView(patches), [self.count] * len(patches))
        return self.layer(merge_tokens(patches.float(), *plan.merge))

    def flops(self, tokens, width, keep):
        return 2 * tokens * width + keep * linear_flops(self.layer)
