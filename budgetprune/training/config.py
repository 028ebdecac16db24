"""Everything that decides a training run, in one frozen object that is saved beside its result."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..budget_sampler import KINDS, BudgetSampler
from ..catalog import available, build, find
from ..checked import integer, number, one_of


@dataclass(frozen=True)
class TrainConfig:
    """How a pruner is trained.

    method, options: as prune() takes them; the method must be trainable.
    k_min, k_max: the counts K that training draws lie in [k_min, k_max]. A compressor has one count: both are it.
    k_sampling, k_counts, k_per_sample: how they are drawn, and whether for each sample or once a step; kind, counts
        and per_sample of BudgetSampler. With k_sampling "list" the range is that of k_counts.
    steps, batch_size: optimiser steps, images per step. learning_rate: peak; warm-up over `warmup` of the steps,
        then half a cosine to zero. weight_decay: of AdamW. max_grad_norm: clip.
    noise: share of the steps, from the first, that draw with Gumbel noise; the rest choose as inference will. With
        noise to the end, tokens of nearly equal logits take turns in training, and at inference the same ones always
        win: patches of one digit crowd out the others.
    lora_rank: 0 leaves the model frozen; otherwise LoRA of this rank on the language model's attention is trained
        with the pruner and saved in the same adapter.
    seed: of the initial weights, the data, the noise and the counts. save_every: steps between checkpoints.

    TypeError: a field of another type. ValueError: a field outside its range.
    """

    method: str = "adaptive"
    options: dict = field(default_factory=dict)
    k_min: int = 2
    k_max: int = 24
    k_sampling: str = "uniform"
    k_counts: tuple[int, ...] = ()
    k_per_sample: bool = False
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
        if not find(self.method).trainable:
            trained = ", ".join(name for name in available() if find(name).trainable)
            raise ValueError(f"method must be a trained one ({trained}), got {self.method}")
        # Here, before a run has begun; prune() takes two more that are not the method's.
        build(self.method, **{name: value for name, value in self.options.items() if name not in ("positions", "seed")})
        for name, least in (("k_min", 1), ("k_max", 1), ("steps", 1), ("batch_size", 1), ("save_every", 1),
                            ("lora_rank", 0)):
            integer(name, getattr(self, name), least)
        for name in ("learning_rate", "warmup", "weight_decay", "max_grad_norm", "noise"):
            number(name, getattr(self, name))
        integer("seed", self.seed, most=2**32 - 1)  # numpy takes no larger one
        if self.k_min > self.k_max:
            raise ValueError(f"k_min and k_max must satisfy 1 <= k_min <= k_max, got {self.k_min} and {self.k_max}")
        one_of("k_sampling", self.k_sampling, KINDS)
        if (self.k_sampling == "list") != bool(self.k_counts):
            raise ValueError(f"k_counts must name the counts where k_sampling is 'list', and be empty elsewhere, got "
                             f"{list(self.k_counts)} with {self.k_sampling!r}")
        object.__setattr__(self, "k_counts", tuple(self.k_counts))  # JSON has lists
        sampler = self.sampler()
        object.__setattr__(self, "k_min", sampler.k_min)
        object.__setattr__(self, "k_max", sampler.k_max)
        if find(self.method).fixed_count and self.k_min != self.k_max:
            raise ValueError(f"k_min and k_max must be one count for {self.method}, whose weights are made for it, got "
                             f"{self.k_min} and {self.k_max}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be in [0, 1], got {self.noise}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")

    @property
    def budget(self) -> dict:
        """`keep` and `train_keep` as prune() takes them."""
        fixed = find(self.method).fixed_count
        return {"keep": self.k_max, "train_keep": None if fixed else (self.k_min, self.k_max)}

    def sampler(self) -> BudgetSampler:
        """What draws the counts of each step."""
        return BudgetSampler(self.k_sampling, self.k_min, self.k_max, self.k_counts, self.k_per_sample, self.seed)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path) -> "TrainConfig":
        """ValueError: the file is of another kind of run."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not of a run that trains a pruner: {error}") from error
