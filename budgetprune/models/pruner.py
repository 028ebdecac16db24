"""What a pruned model carries: its method, its budget, and what was decided last."""

from random import Random

import torch
from torch import Tensor, nn

from ..budget import TokenBudget, count_range
from ..budget_sampler import BudgetSampler
from ..checked import LARGEST_SEED, integer
from ..compress import Compressor
from ..plan import TokenPlan
from ..selectors import Selector
from ..selectors.pair import pair_of
from .base import Family, family_of
from .compressing import Compressing
from .encoding import BeforeProjector, BehindEncoder, Encoding
from .placement import divided_like, whole


class Pruner(nn.Module):
    """The submodule `budget_pruner` of a pruned model: method, budget, and what was decided last.

    Holds no reference to the model, so copies of the model (deepcopy, peft, EMA) stay apart.
    inside: the pruner of a second method, inside the language model, where two work together.
    """

    def __init__(self, selector: Selector, keep, train_keep: tuple[int, int] | None, seed: int, inside=None,
                 positions: str | None = None):
        super().__init__()
        self.selector, self.inside, self.asked_positions = selector, inside, positions
        self.set_keep(keep)
        self.set_train_keep(train_keep)
        self.seed, self.offset, self.noise = integer("seed", seed, most=LARGEST_SEED), 0, True
        self.draws: tuple[BudgetSampler, int, list[tuple[int, int]] | None] | None = None
        self.plan: TokenPlan | None = None
        self.stages: tuple[TokenPlan, ...] = ()
        self.index: Tensor | None = None
        self.valid: Tensor | None = None

    def positions(self, family: Family) -> str:
        """Which position ids stay: those asked for, or the method's; places in the image always stay as they are."""
        return "original" if family.mrope else self.asked_positions or self.selector.positions

    @property
    def llm(self):
        """The pruner that acts inside the language model, or None."""
        return self if self.selector.place == "llm" else self.inside

    def set_keep(self, keep) -> None:
        keep, inside = (keep, None) if self.inside is None else pair_of(keep)
        if keep is None and not self.selector.adaptive_count:
            raise ValueError(f"keep must be given: {self.selector.name} does not choose the count itself")
        budget = None if keep is None else TokenBudget(keep)
        if isinstance(self.selector, Compressor) and self.selector.site is not None:
            self.selector.require([self.selector.count_of(keep, self.selector.site.tokens)])
        if self.inside is not None:
            self.inside.set_keep(inside)  # behind all that is wrong with ours, so that both change or neither
        self.budget, self.told = budget, False

    def set_train_keep(self, train_keep) -> None:
        self.train_keep = None if train_keep is None else count_range("train_keep", train_keep)

    def set_noise(self, noise: bool) -> None:
        """Whether training draws (Gumbel noise) or chooses as inference does."""
        self.noise = noise

    def family(self, model) -> Family:
        return family_of(model)

    def encoding(self, family: Family) -> type[Encoding]:
        """What one call of the encoder is."""
        if isinstance(self.selector, Compressor):
            return Compressing
        return BeforeProjector if family.before_projector and not self.selector.after_projector else BehindEncoder

    def set_draws(self, sampler: BudgetSampler | None = None, step: int = 0, samples=None) -> None:
        """Makes what the next training call draws a function of `sampler`, the step, and each image's place in it: then
        it does not matter how many processes and calls share the step. None: back to torch's generator.

        samples: (number of its sample in the whole step, number of the image in its sample) of each image of the call;
        None: the call is the whole step, and each image is a sample.
        """
        places = None if samples is None else [(int(n), int(image)) for n, image in samples]
        self.draws = None if sampler is None else (sampler, step, places)

    def counts(self, tokens: list[int], training: bool = False) -> list[int] | None:
        """Tokens to keep of samples with these many; in training those of set_draws, or one K for all, drawn from
        [K_min, K_max]."""
        if training and self.draws is not None:
            sampler, step, samples = self.draws
            samples = [(n, 0) for n in range(len(tokens))] if samples is None else samples
            drawn = {n: sampler.draw(step, 1, first=n)[0] for n, _ in samples}
            return [min(drawn[n], most) for (n, _), most in zip(samples, tokens, strict=True)]
        if training and self.train_keep is not None:
            low, high = self.train_keep
            drawn = int(torch.randint(low, high + 1, ()))
            return [min(drawn, n) for n in tokens]
        each = "image" if self.selector.place == "vision" else "row of the prompt"
        return None if self.budget is None else self.budget.counts(tokens, each)

    def next_key(self, tokens: Tensor, images: list[int]) -> Tensor:
        """int64 [2]: in training drawn from torch's generator, which checkpoints restore; else seed and offset.

        In training with set_draws [B, 2]: those of `images`, numbers of the call's images, whose tokens [B, N, C] are.
        """
        if self.training and self.draws is not None:
            sampler, step, samples = self.draws
            places = [(i, 0) if samples is None else samples[i] for i in images]
            names = [f"key/{sampler.seed}/{step}/{n}/{image}" for n, image in places]
            return torch.tensor([[Random(name).getrandbits(62), 0] for name in names], device=tokens.device)
        if self.training:
            seed, offset = int(torch.randint(0, 2**62, ())), 0
        else:
            seed, offset = self.seed, self.offset
            self.offset += (tokens.shape[0] * tokens.shape[1] + 3) // 4
        return torch.tensor([seed, offset], dtype=torch.int64, device=tokens.device)

    # Under peft the submodule is wrapped, and only methods of our own reach the copy that is trained.

    def weights(self) -> dict[str, Tensor]:
        return whole(self.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.load_state_dict(divided_like(weights, self.state_dict()))

    def record(self, plan: TokenPlan | None, index: Tensor | None = None, valid: Tensor | None = None,
               stages: tuple[TokenPlan, ...] = ()) -> None:
        self.plan, self.index, self.valid, self.stages = plan, index, valid, stages
