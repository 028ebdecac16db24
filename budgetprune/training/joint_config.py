"""What decides a training run of tokens and layers together, and the pair of budgets that each of its steps draws."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from ..checked import integer, number, one_of
from ..cost import JointChoice, VlmShape, joint_frontier
from ..models.tuned import TUNES
from ..pruners.depth import schedulers
from ..selectors import available, build
from ..selectors.base import find


@dataclass(frozen=True)
class JointConfig:
    """How image tokens and layers are learnt to be spared together, or one of them alone.

    method, options: of prune(), a trainable one; None: all tokens stay. depth, depth_options: of prune_depth(); None:
        all layers run.
    share_min, share_max: each step draws its budget of FLOPs, a fraction of the full prefill, uniformly from these
        (above 1: the latency token's cost is paid for, too), and one of the pairs of tokens and layers that spend it
        (cost.joint_frontier). text_tokens: of the prompts that are
        priced. least_keep: fewest image tokens drawn.
    tune: what of the model is trained as well: "frozen" nothing; "lora" of rank `lora_rank` on the language model's
        attention; "full" the language model and the projector, as AdaLLaVA does.
    learning_rate: peak, of what decides; model_learning_rate: of the model's own weights. steps, batch_size, warmup,
    weight_decay, max_grad_norm, noise, seed, save_every: as in TrainConfig. data: what the data is called, so that
        a run on other data is another run.

    TypeError, ValueError: a field of another type or outside its range.
    """

    method: str | None = "adaptive"
    options: dict = field(default_factory=dict)
    depth: str | None = "adallava"
    depth_options: dict = field(default_factory=dict)
    share_min: float = 0.35
    share_max: float = 1.05
    text_tokens: int = 5
    least_keep: int = 2
    tune: str = "full"
    lora_rank: int = 8
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-3
    model_learning_rate: float = 5e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    noise: float = 0.3
    seed: int = 0
    save_every: int = 100
    data: str = ""

    def __post_init__(self):
        if self.method is None and self.depth is None:
            raise ValueError("method or depth must be given, got None for both: nothing would be learnt")
        if self.method is not None:
            if not find(self.method).trainable:
                trained = ", ".join(name for name in available() if find(name).trainable)
                raise ValueError(f"method must be None or a trained one ({trained}), got {self.method}")
            build(self.method, **self.options)
        if self.depth is not None:
            one_of("depth", self.depth, schedulers())
        one_of("tune", self.tune, TUNES)
        for name, least in (("text_tokens", 0), ("least_keep", 1), ("lora_rank", 1), ("steps", 1), ("batch_size", 1),
                            ("save_every", 1)):
            integer(name, getattr(self, name), least)
        integer("seed", self.seed, most=2**32 - 1)
        for name, most in (("share_min", 2), ("share_max", 2), ("noise", 1), ("warmup", 1)):
            number(name, getattr(self, name), 0, most)
        for name in ("learning_rate", "model_learning_rate", "weight_decay", "max_grad_norm"):
            number(name, getattr(self, name), 0)
        if self.share_min > self.share_max:
            raise ValueError(f"share_min must be at most share_max, got {self.share_min} and {self.share_max}")

    def pairs(self, shape: VlmShape, share: float, prefix: int) -> list[JointChoice]:
        """What a budget can be spent on. prefix: layers that always run. ValueError: it pays for nothing."""
        layers, tokens = shape.decoder.layers, shape.tokens_per_crop
        return joint_frontier(shape, share, self.text_tokens, prefix=layers if self.depth is None else prefix,
                              least_keep=tokens if self.method is None else min(self.least_keep, tokens),
                              latency_tokens=int(self.depth is not None))

    def drawn(self, shape: VlmShape, step: int, prefix: int) -> JointChoice:
        """The pair of a step: of seed and step alone, so that a resumed run and every process draw the same."""
        draw = Random(f"{self.seed}/{step}")
        return draw.choice(self.pairs(shape, draw.uniform(self.share_min, self.share_max), prefix))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path) -> "JointConfig":
        """ValueError: the file is of another kind of run."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not of a run that spares tokens and layers: {error}") from error
