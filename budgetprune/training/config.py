"""Everything that decides a training run, in one frozen object that is saved beside its result."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainConfig:
    """How a pruner is trained.

    method, options: as prune() takes them; the method must be trainable.
    k_min, k_max: each step draws its count K uniformly from [k_min, k_max].
    steps, batch_size: optimiser steps, images per step. learning_rate: peak; warm-up over `warmup` of the steps,
        then half a cosine to zero. weight_decay: of AdamW. max_grad_norm: clip.
    noise: share of the steps, from the first, that draw with Gumbel noise; the rest choose as inference will. With
        noise to the end, tokens of nearly equal logits take turns in training, and at inference the same ones always
        win: patches of one digit crowd out the others.
    lora_rank: 0 leaves the model frozen; otherwise LoRA of this rank on the language model's attention is trained
        with the pruner and saved in the same adapter.
    seed: of the initial weights, the data, the noise and the counts. save_every: steps between checkpoints.

    ValueError: a field outside its range.
    """

    method: str = "adaptive"
    options: dict = field(default_factory=dict)
    k_min: int = 2
    k_max: int = 24
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    noise: float = 0.3
    lora_rank: int = 0
    seed: int = 0
    save_every: int = 100

    def __post_init__(self):
        if not 1 <= self.k_min <= self.k_max:
            raise ValueError(f"k_min and k_max must satisfy 1 <= k_min <= k_max, got {self.k_min} and {self.k_max}")
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be at least 0, got {self.lora_rank}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be in [0, 1], got {self.noise}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path) -> "TrainConfig":
        return cls(**json.loads(Path(path).read_text()))
