"""A training run on real data: what TrainConfig says of the pruner, and where model and data are and what they cost."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path

from ..catalog import find
from ..checked import flag, integer, number, one_of
from .config import TrainConfig

REPORTS = {"none": None, "tensorboard": "tensorboard", "wandb": "wandb"}
DTYPES = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class RunConfig:
    """How a pruner is trained on conversations about images.

    model: folder or name of a Hugging Face model. data: see records.open_records; images: folder where paths begin.
    pruner: its batch_size is of a step, over all processes and micro-batches; k_per_sample says how counts are drawn.
    epochs: over the data; None: pruner.steps say how long.
    micro_batch: samples at a time in one process; the rest of a step's share is accumulated.
    dtype: of the frozen weights; "auto": bf16 where a GPU can, else fp32. What is trained stays in float32.
    checkpointing: activations of the language model are computed again in the backward pass, not kept.
    train_projector: the projector is trained with all its weights. model_learning_rate: of it and of LoRA.
    max_length: tokens of a row; longer ones lose their end, but never an image.
    one_question: every question of a conversation by itself; None: for methods that look at the question.
    max_skipped: share of samples that may be unreadable before the run stops.
    workers: processes that read images, for each that trains. report_to: "none", "tensorboard" or "wandb".
    fsdp: weights are divided over the processes (FSDP2). deepspeed: path of a DeepSpeed configuration.
    records: rows of the data, filled in when it is opened.

    TypeError: a field of another type. ValueError: a field outside its range, or a package it needs is missing.
    """

    model: str
    data: str
    images: str | None = None
    pruner: TrainConfig = field(default_factory=TrainConfig)
    epochs: float | None = 1.0
    micro_batch: int = 4
    dtype: str = "auto"
    checkpointing: bool = True
    train_projector: bool = False
    model_learning_rate: float = 2e-4
    max_length: int = 2048
    one_question: bool | None = None
    max_skipped: float = 0.05
    workers: int = 4
    report_to: str = "none"
    fsdp: bool = False
    deepspeed: str | None = None
    records: int | None = None

    # What may differ when a run goes on: it changes where and how fast it runs, not its result.
    FREE = ("data", "images", "micro_batch", "checkpointing", "workers", "report_to", "fsdp", "deepspeed")

    def __post_init__(self):
        for name, least in (("micro_batch", 1), ("max_length", 2), ("workers", 0)):
            integer(name, getattr(self, name), least)
        for name in ("checkpointing", "train_projector", "fsdp"):
            flag(name, getattr(self, name))
        if self.one_question is not None:
            flag("one_question", self.one_question)
        if self.epochs is not None and not number("epochs", self.epochs) > 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if not number("model_learning_rate", self.model_learning_rate) > 0:
            raise ValueError(f"model_learning_rate must be positive, got {self.model_learning_rate}")
        number("max_skipped", self.max_skipped, 0, 1)
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be a name or a path, got {getattr(self, name)!r}")
        one_of("dtype", self.dtype, DTYPES)
        one_of("report_to", self.report_to, REPORTS)
        if self.fsdp and self.deepspeed:
            raise ValueError("fsdp and deepspeed both divide the weights: name one of them")
        if (package := REPORTS[self.report_to]) and find_spec(package) is None:
            raise ValueError(f"report_to {self.report_to} needs a package that is not installed: pip install {package}")
        if self.deepspeed is not None:
            if find_spec("deepspeed") is None:
                raise ValueError("deepspeed must be installed for a DeepSpeed configuration: pip install deepspeed")
            if not Path(self.deepspeed).is_file():
                raise ValueError(f"deepspeed must be a JSON file with a configuration, got {self.deepspeed}")

    @property
    def by_question(self) -> bool:
        return "text" in find(self.pruner.method).needs if self.one_question is None else self.one_question

    @property
    def with_text(self) -> bool:
        """Whether rows without an image teach anything: only LoRA's weights are there in them."""
        return self.pruner.lora_rank > 0

    def resolved(self, records: int, epoch_length: int) -> "RunConfig":
        """With the steps that its epochs are, of data with so many rows."""
        pruner = self.pruner
        if self.epochs is not None:
            pruner = replace(pruner, steps=max(1, round(self.epochs * epoch_length / pruner.batch_size)))
        return replace(self, pruner=pruner, records=records)

    def same_run(self, other: "RunConfig") -> bool:
        """Whether one can go on where the other stopped."""
        return all(getattr(self, one.name) == getattr(other, one.name) for one in fields(self)
                   if one.name not in self.FREE)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path) -> "RunConfig":
        values = json.loads(Path(path).read_text())
        values.update(pruner=TrainConfig(**values["pruner"]), report_to="none", deepspeed=None)  # as they are free
        return cls(**values)
