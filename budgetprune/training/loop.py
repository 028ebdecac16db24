"""Trains a pruner on the language-model loss alone, with the Hugging Face Trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from ..models import Pruning, from_pretrained, prune
from ..models.adapter import load_adapter, load_weights, save_pretrained
from ..models.base import family_of
from ..models.tuned import LORA_TARGETS
from .config import TrainConfig
from .run_folder import begin, go_on, is_finished, seal
from .terminal import deferred_interrupts


class PrunerTrainer(Trainer):
    """Saves and restores the pruner instead of the frozen model around it, and reads the data in order."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _save(self, output_dir=None, state_dict=None):
        if is_peft(self.model):
            return super()._save(output_dir, state_dict)
        save_pretrained(self.accelerator.unwrap_model(self.model), output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if is_peft(self.model):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_weights(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)


def is_peft(model) -> bool:
    return hasattr(model, "peft_config")


class Report(TrainerCallback):
    """Tells a caller how far training is, takes the noise away when its share of the steps is over, and stops at the
    end of a step, with a checkpoint, once interrupted() is true in any process; then `stopped` is.

    sampler: what draws each step's counts, where a call is a whole step.
    """

    def __init__(self, tell: Callable[[int, dict], None] | None, pruner, noise_steps: float, interrupted, sampler=None):
        self.tell = tell or (lambda step, values: None)
        self.pruner, self.noise_steps, self.interrupted, self.sampler = pruner, noise_steps, interrupted, sampler
        self.stopped = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.pruner.set_noise(state.global_step < self.noise_steps)
        if self.sampler is not None:
            self.pruner.set_draws(self.sampler, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.tell(state.global_step, {})
        if in_any_process(self.interrupted(), args.device) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.tell(state.global_step, logs or {})


def in_any_process(flag: bool, device) -> bool:
    """Whether `flag` is true in one of the processes: they must stop at one step, or some would wait for the others."""
    if not dist.is_available() or not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def attach(model: nn.Module, config: TrainConfig, whole: Sequence[str] | None = None) -> tuple[nn.Module, Pruning]:
    """Prunes `model`, freezes it, opens what `config` trains. Returns (the model to train, its pruning).

    whole: names of modules that are trained with all their weights; given, all that is trained is one peft adapter.
    """
    set_seed(config.seed)
    pruning = prune(model, config.method, **config.budget, **config.options)
    model.requires_grad_(False)
    if config.lora_rank == 0 and whole is None:
        model.budget_pruner.requires_grad_(True)
        return model, pruning
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    # Without LoRA the adapter has no layers of its own: peft's name for that.
    rank, targets = (config.lora_rank, LORA_TARGETS) if config.lora_rank else (1, DUMMY_TARGET_MODULES)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets,
                      modules_to_save=["budget_pruner", *(whole or ())])
    return get_peft_model(model, lora), pruning


def train_pruner(model: nn.Module, dataset, out_dir, config: TrainConfig, *, resume: bool = True,
                 tell: Callable[[int, dict], None] | None = None) -> Pruning:
    """Trains a pruner for `model` and leaves the model pruned with it.

    Gates act inside attention and the loss is the language model's. Interrupted or killed, the same call goes on
    from the last whole checkpoint in `out_dir` with the same result as an unbroken run; finished, it only loads.

    Args:
        model: a Hugging Face VLM; its own weights stay frozen (LoRA apart, see TrainConfig).
        dataset: map-style; items are forward arguments with labels, item i always the same.
        out_dir: for budgetprune_config.json and budgetprune_model.safetensors (with LoRA: one peft adapter),
            train_config.json, train_log.jsonl, and, until the end, checkpoints.
        resume: False begins anew.
        tell: called with (step, values) as training goes on.

    ValueError: `out_dir` holds a run with another configuration, or the method is not trainable.
    """
    out_dir = Path(out_dir)
    if resume and is_finished(out_dir, config):
        return finished(model, out_dir)
    check(model, config)
    begin(out_dir, config, resume)
    trained, pruning = attach(model, config)
    arguments = arguments_of(config, out_dir)
    with deferred_interrupts() as interrupted:
        report = Report(tell, model.budget_pruner, config.noise * config.steps, interrupted, config.sampler())
        trainer = PrunerTrainer(trained, arguments, train_dataset=dataset, callbacks=[report],
                                data_collator=getattr(dataset, "collate", None))
        try:
            go_on(trainer, report, out_dir)
        finally:
            trained.eval()
            model.budget_pruner.set_draws(None)
    if is_peft(trained):
        trained.save_pretrained(out_dir)
    save_pretrained(model, out_dir)
    seal(trainer, out_dir)
    return pruning


def check(model: nn.Module, config: TrainConfig) -> None:
    """Says what is wrong with method and counts before anything of an earlier run is replaced."""
    prune(model, config.method, **config.budget, **config.options).remove()
    tokens = family_of(model).features(model)[1]
    if tokens is not None and config.k_max > tokens:
        raise ValueError(f"k_max must be at most N={tokens}, the image tokens of this model, got {config.k_max}")


def finished(model: nn.Module, out_dir) -> Pruning:
    """The model as the run in `out_dir` left it: pruned, with LoRA and whatever else was trained of its own."""
    pruning = from_pretrained(model, out_dir)
    load_adapter(model, out_dir)
    model.eval()
    return pruning


def arguments_of(config, out_dir: Path) -> TrainingArguments:
    """The Trainer's arguments of a run on one device. config: a TrainConfig, or another with its schedule's fields."""
    return TrainingArguments(
        output_dir=str(out_dir / "checkpoints"), max_steps=config.steps, per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate, lr_scheduler_type="cosine", warmup_steps=int(config.warmup * config.steps),
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, seed=config.seed, logging_steps=10,
        save_steps=config.save_every, save_total_limit=2, remove_unused_columns=False, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available())
