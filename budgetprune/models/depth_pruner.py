"""What a model carries whose depth is pruned: its scheduler, its budget, and what was decided last."""

import torch
from torch import Tensor, nn

from ..budget import count_range
from ..checked import LARGEST_SEED, integer
from ..pruners.depth import DepthScheduler
from . import decoder
from .depth_state import DepthPlan
from .placement import divided_like, whole


class DepthPruner(nn.Module):
    """The submodule `budget_depth` of a model: scheduler, budget, and what was decided last.

    Under peft it may be wrapped, and only methods of its own reach the copy that is trained.
    """

    def __init__(self, method: DepthScheduler, budget, train_budget, seed: int):
        super().__init__()
        self.scheduler, self.seed = method, integer("seed", seed, most=LARGEST_SEED)
        self.noise, self.plan = True, None
        self.set_budget(budget)
        self.set_train_budget(train_budget)

    def set_budget(self, budget) -> None:
        amounts = budget.tolist() if hasattr(budget, "tolist") else budget
        several = isinstance(amounts, (list, tuple))
        if several and not amounts:
            raise ValueError("budget must hold at least one amount, got an empty sequence")
        for amount in amounts if several else (amounts,):
            self.scheduler.count(amount)
        self.budget = tuple(amounts) if several else amounts

    def set_train_budget(self, budgets) -> None:
        if budgets is not None:
            budgets = count_range("train_budget", budgets)
            for budget in budgets:
                self.scheduler.count(budget)
        self.train_budget = budgets

    def set_noise(self, noise: bool) -> None:
        """Whether training draws (Gumbel noise) or chooses as inference does."""
        self.noise = noise

    def counts(self, rows: int) -> list[int]:
        """Layers or units beyond the prefix of each row; in training drawn for each from the range, if there is one."""
        if self.training and self.train_budget is not None:
            low, high = self.train_budget
            drawn = torch.randint(low, high + 1, (rows,)).tolist()
            return [self.scheduler.count(budget) for budget in drawn]
        if not isinstance(self.budget, tuple):
            return [self.scheduler.count(self.budget)] * rows
        prompts = decoder.prompts.get() or rows  # beams are several rows of one prompt
        if len(self.budget) not in (prompts, rows):
            raise ValueError(f"budget must have {rows} entries, one per row of the prompt, got {len(self.budget)}")
        times = rows // len(self.budget)
        return [self.scheduler.count(budget) for budget in self.budget for _ in range(times)]

    def token(self, counts: list[int]) -> Tensor:
        return self.scheduler.token(counts)

    def choose(self, hidden: Tensor, counts: list[int], *, gated: bool) -> Tensor:
        """The plan, see AdaLLaVA.forward. In training its noise is drawn by torch's generator, which checkpoints
        restore."""
        if not gated:
            return self.scheduler(hidden, counts)
        key = torch.tensor([int(torch.randint(0, 2**62, ())), 0], dtype=torch.int64, device=hidden.device)
        return self.scheduler(hidden, counts, key=key, noise=self.noise)

    def answer_from(self) -> str:
        return self.scheduler.answer_from

    def prefix(self) -> int:
        return self.scheduler.prefix

    def record(self, plan: DepthPlan | None) -> None:
        self.plan = plan

    def last_plan(self) -> DepthPlan | None:
        return self.plan

    def weights(self) -> dict[str, Tensor]:
        return whole(self.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.load_state_dict(divided_like(weights, self.state_dict()))
