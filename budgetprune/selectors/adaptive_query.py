"""The trained pruner that hears the question."""

from ..checked import integer
from ..pruners import QueryController
from .adaptive import Adaptive
from .base import TokenView


class AdaptiveQuery(Adaptive):
    """score[n] = controller(features, budget, question)[n]: as adaptive, and the question says what is looked for.

    Patches and words meet in a dot product, see pruners.QueryController. The words are all text of the sample's prompt;
    what labels say is the answer is no part of it. Trained with gates inside attention, as adaptive is. Because its
    choice depends on the question, an image that is asked about again must be pruned again.

    Options are those of adaptive, and query_dim, the width that patches and words meet in.
    """

    name = "adaptive_query"
    needs = frozenset({"text"})

    def __init__(self, tau: float = 1.0, use_cls: bool = False, estimator: str = "race", fusion: str = "post",
                 conditioning: str = "add", hidden_dim: int | None = None, query_dim: int = 64,
                 gate: str = "attention", token_position: str = "own"):
        super().__init__(tau, use_cls, estimator, fusion, conditioning, hidden_dim, gate, token_position)
        self._options["query_dim"] = integer("query_dim", query_dim, 1)

    def _made(self, vision_dim, num_patches, text_dim, **options):
        return QueryController(vision_dim, num_patches, text_dim, **options)

    def asked(self, view: TokenView) -> dict:
        return {**super().asked(view), "text": view.need("text"), "text_valid": view.text_valid}
