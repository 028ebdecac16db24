"""The budget of each image in the tower's own sequence, for methods whose budget goes through the encoder."""

import torch
from torch import Tensor

from ..pruners.tower_hooks import appended, check_tower, install, leave


def add_hooks(model, family) -> list:
    """What lets budget tokens into the model's tower and cuts them out behind it; returns the handles."""
    handles = install(family.vision_tower(model))
    return handles + [part.register_forward_pre_hook(leave) for part in family.behind_tower(model)]


def check(model, family) -> None:
    """ValueError where no budget token can enter the model's tower."""
    try:
        check_tower(family.vision_tower(model))
    except ValueError as error:
        raise ValueError(f"fusion must be 'post' in {type(model).__name__}: {error}") from None


class BudgetRows:
    """One call of the encoder. The count of every image is decided before the tower runs, for it sees them.

    counts: [K_i] of all images, medium after medium.
    """

    def __init__(self, model, family, inputs: dict, pruner, *, training: bool):
        self.model, self.family, self.selector = model, family, pruner.selector
        media = [medium for medium, pixels in family.media.items() if inputs.get(pixels) is not None]
        self.images = {medium: family.images(model, medium, inputs) for medium in media}
        patches = [n for images in self.images.values() for n, _ in images]
        self.counts = pruner.counts(patches, training=training)
        shares = iter([count / n for count, n in zip(self.counts, patches)])
        self.budgets = {medium: [next(shares) for _ in images] for medium, images in self.images.items()}
        self.calls: dict = {}

    def enter(self, medium: str):
        """A context: within it the tower runs with a token in each row of each image of the medium."""
        rows = [share for share, (_, rows) in zip(self.budgets[medium], self.images[medium]) for _ in range(rows)]
        tower = self.family.vision_tower(self.model)
        device = next(self.selector.parameters()).device
        self.calls[medium] = self.selector.budget_token(torch.tensor(rows, device=device), tower)
        return appended(self.calls[medium])

    def states(self) -> list[Tensor]:
        """[C''] of each image that the tower has seen: the state of its token, the mean over its rows."""
        return [part.mean(0) for medium, call in self.calls.items()
                for part in call.states.split([rows for _, rows in self.images[medium]])]
