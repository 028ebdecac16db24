"""The trained pruner: a budget and a controller choose which tokens stay."""

from typing import ClassVar

from torch import Tensor, nn

from ..checked import one_of
from ..pruners import BudgetEmbedding, BudgetToken, VisionTokenController
from ..pruners.budget_token import POSITIONS, TokenCost
from ..pruners.controller import options_of
from ..pruners.relaxation import FORMS
from ..pruners.tower_hooks import Appended
from .base import Selector, TokenView, ragged

GATES = ("attention", "features", "noise")


class Adaptive(nn.Module, Selector):
    """score[n] = controller(features, budget)[n], learned from the language-model loss alone.

    In training all tokens stay in the sequence and the hard gates act inside the attention of every
    decoder layer (DynamicViT, Rao et al. 2021, eq. 11), so a dropped token learns what it would have
    been worth; at inference the tokens are really removed and the kept ones hold their original
    positions, which gives the same output.

    Options are those of pruners.VisionTokenController, at tau = 1, and gate, what training does with the choice:
    "attention": as said; "features": the kept tokens are gathered, each times its straight-through gate, as is usual:
    the dropped ones then learn nothing, and it trains worse than random selection does; "noise": every token stays, and
    noise takes the place of what is little wanted (pruners.throttle), with the inclusion probabilities of the estimator
    race or fermi. The module is made when it meets its model.

    fusion: "post": the budget joins behind the vision encoder; "encoder": it is one more token inside of it (CLIP,
    SigLIP and Qwen towers; pruners.VisionEncoderWithBudgetToken, whose position is `token_position`), so that features
    depend on the budget too, and keeping all is not the unpruned model. Training goes back through the tower, which
    costs its activations. An image in crops or frames has a token in each, and their states are averaged.
    """

    name = "adaptive"
    positions = "original"
    trainable: ClassVar[bool] = True

    def __init__(self, tau: float = 1.0, use_cls: bool = False, estimator: str = "race", fusion: str = "post",
                 conditioning: str = "add", hidden_dim: int | None = None, gate: str = "attention",
                 token_position: str = "own"):
        super().__init__()
        # Here already, and not only where the controller is made: nothing may have begun for a model by then.
        self._options = options_of(tau, use_cls, estimator, fusion, conditioning, hidden_dim)
        self.use_cls, self.acts_on = use_cls, one_of("gate", gate, GATES)
        self.budget_in_tower = fusion == "encoder"
        self.token_position = one_of("token_position", token_position, POSITIONS)
        if gate == "noise":
            one_of("estimator of gate 'noise'", estimator, FORMS)
        self.controller, self.token, self.token_cost = None, None, None

    def options(self) -> dict:
        return {**self._options, "gate": self.acts_on, "token_position": self.token_position}

    def bind(self, vision_dim: int, num_patches: int | None, text_dim: int | None = None, tower=None,
             state_dim: int | None = None) -> None:
        """Makes the controller for a model with these widths of features and text, and patches (None: any number).

        tower, state_dim: with fusion="encoder" the model's vision tower, or its TokenCost, and the width of its states
        where they leave it, several layers' side by side in some models.
        """
        if self.controller is not None:
            return
        if self.budget_in_tower:
            if tower is None:
                raise ValueError("tower must be given with fusion 'encoder': the vision tower that the budget enters")
            self.token_cost = tower if isinstance(tower, TokenCost) else TokenCost.of(tower)
            self.token = BudgetToken(BudgetEmbedding(self.token_cost.width), self.token_cost.width, self.token_position)
            state_dim = state_dim or self.token_cost.width
        self.controller = self._made(vision_dim, num_patches, text_dim, state_dim=state_dim, **self._options)

    def bind_shape(self, shape, keep: int | None = None) -> None:
        """As bind, for a model of which only a cost.VlmShape is known."""
        tower, before = shape.tower, shape.projector.selects_before
        whole = tower.layers if tower.window is None else len(tower.whole_layers)
        patches = None if shape.packed else tower.side**2
        one_grid = not shape.packed and shape.tiling is None and shape.projector.merge == 1
        linear = tower.layers * sum(inputs * outputs for inputs, outputs in tower.matrices)
        token = TokenCost(linear, tower.hidden, whole, tower.layers - whole, patches,
                          shape.projector.merge**2 if shape.packed else 1, int(tower.class_token))
        self.bind(shape.projector.matrices[0][0] if before else shape.decoder.hidden, patches if one_grid else None,
                  shape.decoder.hidden, token)

    def _made(self, vision_dim, num_patches, text_dim, **options):
        return VisionTokenController(vision_dim, num_patches, **options)

    def flops(self, tokens, width, keep):
        own = self._controller().flops(tokens)
        return own if self.token is None else own + self.token_cost.flops(tokens) + self.token.flops()

    def budget_token(self, budget: Tensor, tower: nn.Module) -> Appended:
        """The tokens of budgets [R], fractions kept, for the rows of the tower."""
        self._controller()
        return Appended(self.token(budget, tower), self.token_position)

    def _controller(self):
        if self.controller is None:
            raise RuntimeError(f"{self.name} has no controller yet: prune a model with it, or call bind first")
        return self.controller

    def asked(self, view: TokenView) -> dict:
        """What the controller looks at beside features and budget."""
        return {"state": view.need("budget")} if self.budget_in_tower else {}

    def plan(self, view: TokenView, keep):
        keep = self.require(keep)
        raise_if_ragged(view)
        controller = self._controller()
        was_training = controller.training
        try:
            return ragged(controller.eval()(view.tokens, keep, **self.asked(view)).kept, keep)
        finally:
            controller.train(was_training)

    def gate(self, view: TokenView, keep, noise: bool = True):
        """[B, N] with gradient to the controller: exactly 0 or 1, what training puts inside attention or on features;
        or in [0, 1], how much of each token stays where noise takes the place of the rest."""
        raise_if_ragged(view)
        keep, key = self.require(keep), view.need("key")
        if self.acts_on == "noise":
            return self._controller().shares(view.tokens, keep, **self.asked(view))
        return self._controller()(view.tokens, keep, key=key, noise=noise, **self.asked(view)).gate


def raise_if_ragged(view: TokenView) -> None:
    if view.valid is not None and not bool(view.valid.all()):
        raise ValueError("a trained pruner needs the same number of patches in every image")
