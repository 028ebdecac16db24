"""The budget inside the encoder: one more token of a vision tower, that patches and budget meet through."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checked import integer, one_of
from .tower_hooks import PACKED, ROWS, Appended, appended, check_tower, install, kind_of, width_of

POSITIONS = ("own", "first", "last")


class BudgetToken(nn.Module):
    """What a tower gets for a budget: budget_embedding(budget) and, with position "own", a learned position vector.

    position: "own"; "first": the position of the tower's first token, "last": that of its last patch. Towers with
    rotary positions turn the token as the patch there; an own position is not turned.
    """

    def __init__(self, embedding: nn.Module, width: int, position: str = "own"):
        super().__init__()
        self.embedding, self.at = embedding, one_of("position", position, POSITIONS)
        self.position = nn.Parameter(0.02 * torch.randn(integer("vision_hidden_size", width, 1))) \
            if position == "own" else None

    def flops(self) -> int:
        """2 x multiply-adds of one embedding."""
        return 2 * sum(m.in_features * m.out_features for m in self.embedding.modules() if isinstance(m, nn.Linear))

    def forward(self, budget: Tensor, tower: nn.Module) -> Tensor:
        """[R, C] for budgets [R] or [R, 1], the fractions kept, and the tower they go to."""
        token = self.embedding(budget)
        if self.at == "own":
            return token + self.position
        table = _positions(tower)
        return token if table is None else token + table[0 if self.at == "first" else -1].to(token)


def _positions(tower):
    """[N, C], the learned positions of a tower, or None where it has none but rotary ones."""
    if kind_of(tower) in ROWS:
        return tower.embeddings.position_embedding.weight
    return tower.pos_embed.weight if hasattr(tower, "pos_embed") else None


@dataclass(frozen=True)
class TokenCost:
    """What one more token costs in each row of a tower.

    linear: multiply-adds of all its linear layers for one token. width: C. seen, alone: blocks in which it meets its
    row, and in which it is by itself. patches: those of a row, None where that depends on the image; then `merged` of
    them make one of the tokens that methods choose among. prefix: tokens before the patches.
    """

    linear: int
    width: int
    seen: int
    alone: int
    patches: int | None
    merged: int = 1
    prefix: int = 0

    @classmethod
    def of(cls, tower: nn.Module) -> "TokenCost":
        rows, config = kind_of(tower) in ROWS, tower.config
        blocks = tower.encoder.layers if rows else tower.blocks
        linear = sum(m.in_features * m.out_features for m in blocks.modules() if isinstance(m, nn.Linear))
        whole = getattr(tower, "fullatt_block_indexes", None)
        seen = len(blocks) if whole is None else sum(index < len(blocks) for index in set(whole))
        patches = (config.image_size // config.patch_size) ** 2 if rows else None
        return cls(linear, width_of(tower), seen, len(blocks) - seen, patches,
                   1 if rows else tower.spatial_merge_size ** 2, int(kind_of(tower) == "clip_vision_model"))

    def flops(self, tokens: int) -> int:
        """2 x multiply-adds for an image with so many tokens; one in crops counts as the rows that hold as many."""
        rows = max(1, round(tokens / self.patches)) if self.patches else 1
        length = (self.patches or tokens * self.merged) + self.prefix
        pairs = self.seen * (2 * length + 1) + self.alone  # (L + 1)^2 - L^2 more, of queries and keys
        return rows * 2 * (self.linear + 2 * pairs * self.width)


class VisionEncoderWithBudgetToken(nn.Module):
    """A vision tower that sees the budget: one token behind CLS and patches, in the same stack of layers.

    The tower's own forward runs, with hooks that do nothing when it is called by itself; remove() takes them away.
    `last_hidden_state` of what it returns is [B, N+2, C] for CLIP and [B, N+1, C] for SigLIP, which has no CLS, and
    `budget_state` [B, C] is its last position: what a controller with fusion="encoder" reads. Qwen's towers hold all
    images in one sequence [S + R, C], where a budget token follows each image; a video has one behind each of its
    frames, which see nothing of each other, and `budget_state` is their mean. In blocks with window attention the token
    is a window by itself. Mergers and pooling heads do not see it.

    Args:
        vision_tower: of CLIP, SigLIP, Qwen2-VL, Qwen2.5-VL or Qwen3-VL in transformers.
        budget_embedding: a module from budgets [B] to [B, C], as BudgetEmbedding(vision_hidden_size).
        vision_hidden_size: C, the width of the tower's tokens.
        position: "own", a learned vector; "first" or "last", the position of the tower's first token or last patch.

    ValueError: another kind of tower, one with a budget token, another width, or an unknown position.
    """

    def __init__(self, vision_tower: nn.Module, budget_embedding: nn.Module, vision_hidden_size: int, *,
                 position: str = "own"):
        super().__init__()
        check_tower(vision_tower)
        token = BudgetToken(budget_embedding, vision_hidden_size, position)
        if vision_hidden_size != width_of(vision_tower):
            raise ValueError(f"vision_hidden_size must be {width_of(vision_tower)}, the width of the tower's tokens, "
                             f"got {vision_hidden_size}")
        self.vision_tower, self.token = vision_tower, token
        self.handles = install(vision_tower)

    def forward(self, pixel_values: Tensor, budget: Tensor, **kwargs):
        """The tower's output. budget: [B] or [B, 1] float, of each image the fraction that is kept. kwargs: what the
        tower takes beside pixels, as grid_thw."""
        if not self.handles:
            raise RuntimeError("the budget token has been removed from this tower")
        frames = None
        if kind_of(self.vision_tower) in PACKED:
            frames = kwargs["grid_thw"][:, 0].to(budget.device)
            if len(budget) != len(frames):
                raise ValueError(f"budget must have {len(frames)} entries, one for each image, got {len(budget)}")
            budget = budget.repeat_interleave(frames, dim=0)
        with appended(Appended(self.token(budget, self.vision_tower), self.token.at)) as call:
            output = self.vision_tower(pixel_values, **{**kwargs, "return_dict": True})
        if frames is None:
            output.budget_state = output.last_hidden_state[:, -1]
        else:
            output.budget_state = torch.stack([part.mean(0) for part in call.states.split(frames.tolist())])
        return output

    def remove(self) -> nn.Module:
        """The tower without any of this: what it gives is bit-equal to what it gave before."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        return self.vision_tower
