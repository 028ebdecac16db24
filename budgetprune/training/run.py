"""A pruner trained on conversations about images, on one device or many, with the Hugging Face Trainer."""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainingArguments

from ..catalog import build
from ..models import Pruning
from ..models.adapter import replace_file
from ..models.base import family_of
from .chat import Chat
from .loop import Report, attach, check, finished
from .order import Order
from .records import Records, open_records
from .run_config import RunConfig
from .run_folder import CONFIG as OTHERS
from .run_folder import begin, go_on, is_finished, refuse_another, seal
from .skips import FILE as SKIPPED
from .skips import Skips, several
from .stream import ConversationStream, Items
from .terminal import deferred_interrupts
from .trainer import RunTrainer, keep_result

CONFIG = "run_config.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """pruning: of the model, pruned as trained. skipped: samples that could not be read; None: nothing was trained
    now. samples: that were trained on."""

    pruning: Pruning
    samples: int
    skipped: int | None


def train_on_conversations(load: Callable[[torch.dtype], tuple], config: RunConfig, out_dir, *, resume: bool = True,
                           tell: Callable[[int, dict], None] | None = None) -> Trained:
    """Trains a pruner as `config` says, and leaves the model pruned with it.

    Each process of a launcher calls this. Steps, samples, counts and noise are the same for any number of processes;
    interrupted or killed, the same call goes on from the last whole checkpoint in `out_dir`, to the same bits on as
    many processes.

    Args:
        load: (model, processor) with weights of the given dtype.
        out_dir: for the pruner and what train_pruner writes beside it, run_config.json and skipped.jsonl.
        resume: False begins anew.
        tell: called with (step, values) as training goes on, first with (0, {"steps": how many}).

    ValueError: `out_dir` holds another run, the model or its chat template cannot be trained, or too many samples
    cannot be read.
    """
    if config.images is not None and not Path(config.images).is_dir():
        raise FileNotFoundError(f"images must be a folder, got {config.images}, which is none")
    out_dir, records = Path(out_dir), open_records(config.data)
    items = Items(records, one_question=config.by_question, with_text=config.with_text)
    if not len(items.images) + len(items.texts):
        raise ValueError(f"data must hold rows with an image, {config.data} has none")
    order = Order(items.images, items.texts, config.pruner.batch_size, config.pruner.seed)
    config = config.resolved(len(records), order.epoch_length)
    if resume:
        refuse_other_run(out_dir, config)
    arguments = training_arguments(config, out_dir)  # before the model, which DeepSpeed loads in parts
    model, processor = load(dtype_of(config))
    check_model(model, config)
    if resume and is_finished(out_dir, config.pruner):
        return Trained(finished(model, out_dir), config.pruner.steps * config.pruner.batch_size, None)
    chat = Chat(processor, family_of(model).token_ids(model).values(), config.max_length)
    stream = ConversationStream(records, items, order, chat, config.images and Path(config.images),
                                config.pruner.steps * config.pruner.batch_size)
    if arguments.should_save:
        say(config, records, items, arguments)
        begin(out_dir, config.pruner, resume)
        if not resume:
            (out_dir / SKIPPED).unlink(missing_ok=True)
        replace_file(out_dir / CONFIG, lambda path: path.write_text(config.to_json()))
    together()
    with events_in(out_dir / "tensorboard"):
        return _train(model, stream, config, arguments, out_dir, tell)


@contextmanager
def events_in(folder: Path):
    """Where this run's events for TensorBoard go, unless the user has said where; the next run has another folder."""
    name = "TENSORBOARD_LOGGING_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]


def _train(model, stream, config, arguments, out_dir, tell) -> Trained:
    whole = [projector_name(model)] if config.train_projector else [] if config.deepspeed else None
    trained, pruning = attach(model, config.pruner, whole)
    for parameter in trained.parameters():
        if parameter.requires_grad:  # steps of a small learning rate are lost in half precision
            parameter.data = parameter.data.float()
    if config.fsdp:  # transformers' own list names classes that a LLaVA's tower does not have
        family = family_of(model)
        units = {type(block[0]).__name__ for block in (family.decoder(model).layers, family.blocks(model))}
        arguments.fsdp_plugin_args["transformer_cls_names_to_wrap"] = ",".join(sorted(units))
    skips = Skips(out_dir, config.pruner.batch_size, config.pruner.steps, config.max_skipped)
    if tell:
        tell(0, {"steps": config.pruner.steps})
    with deferred_interrupts(signal.SIGTERM, apart=5.0) as interrupted:
        report = Report(tell, model.budget_pruner, config.pruner.noise * config.pruner.steps, interrupted)
        trainer = RunTrainer(trained, arguments, train_dataset=stream, data_collator=stream.collate,
                             callbacks=[skips, report])
        trainer.prepare(config, skips, model.budget_pruner, whole or [])
        if config.fsdp and not trainer.accelerator.is_fsdp2:
            raise ValueError(f"fsdp must have a GPU for each process, got {arguments.device.type}")
        try:
            go_on(trainer, report, out_dir)
        finally:
            trained.eval()
            model.budget_pruner.set_draws()
    keep_result(trainer, trained, out_dir)
    together()
    if arguments.should_save:
        seal(trainer, out_dir)
    together()
    return Trained(pruning, len(stream), skips.count)


def refuse_other_run(out_dir: Path, config: RunConfig) -> None:
    """ValueError: the folder holds a run that this one cannot go on with. Every process asks before any of them writes.
    """
    if not (out_dir / CONFIG).is_file() and (out_dir / OTHERS).is_file():
        raise ValueError(f"{out_dir} holds a run of another kind; choose another folder, or begin anew with "
                         "resume=False (--no-resume)")
    refuse_another(out_dir / CONFIG, lambda path: RunConfig.read(path).same_run(config))


def check_model(model: nn.Module, config: RunConfig) -> None:
    """Says what is wrong with model and method before anything of an earlier run is replaced."""
    family, own = family_of(model), config.pruner
    method = build(own.method, **{name: value for name, value in own.options.items()
                                  if name not in ("positions", "seed")})
    if family.prefix_lm and method.acts_on == "attention":
        raise ValueError(f"model must have causal attention, in which gates act: {type(model).__name__}'s prompt sees "
                         "itself in both directions")
    check(model, own)
    if config.train_projector:
        if method.fixed_count and method.options().get("train_projector"):
            raise ValueError(f"train_projector must be False for {own.method}, which trains a projector of its own, or "
                             "the method's option train_projector must be")
        projector_name(model)


def projector_name(model: nn.Module) -> str:
    """The name of the module between tower and language model. ValueError: none that is known."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    found = [name for name in ("multi_modal_projector", "merger") if name in names]
    if not found:
        raise ValueError(f"train_projector must be False for {type(model).__name__}: its projector is not known")
    return found[0]


def dtype_of(config: RunConfig) -> torch.dtype:
    half = config.dtype == "bf16" or (config.dtype == "auto" and torch.cuda.is_available()
                                      and torch.cuda.is_bf16_supported())
    return torch.bfloat16 if half else torch.float32


def training_arguments(config: RunConfig, out_dir: Path) -> TrainingArguments:
    """ValueError: the step's samples cannot be divided among the processes."""
    own = config.pruner
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if own.batch_size % (processes * config.micro_batch):
        raise ValueError(f"batch_size must be a multiple of processes x micro_batch, {processes} x "
                         f"{config.micro_batch}, got {own.batch_size}")
    if config.fsdp and processes < 2:
        raise ValueError("fsdp must have several processes to divide the weights over, got one: see docs/cluster.md")
    fsdp = {}
    if config.fsdp:  # reshards after forward: the frozen weights are most of the memory
        fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT",
                                              "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    checkpointing = {}
    if config.checkpointing:  # reentrant, it would lose the gradient to the gates, which are keywords
        checkpointing = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(out_dir / "checkpoints"), max_steps=own.steps, per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=own.batch_size // (processes * config.micro_batch), deepspeed=config.deepspeed,
        learning_rate=own.learning_rate, lr_scheduler_type="cosine", warmup_steps=int(own.warmup * own.steps),
        weight_decay=own.weight_decay, max_grad_norm=own.max_grad_norm, seed=own.seed, logging_steps=1 if own.steps < 50
        else 10, save_steps=own.save_every, save_total_limit=2, remove_unused_columns=False, disable_tqdm=True,
        report_to=[] if config.report_to == "none" else [config.report_to], run_name=out_dir.name,
        dataloader_num_workers=config.workers, dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_persistent_workers=False, use_cpu=not torch.cuda.is_available(), **fsdp, **checkpointing)


def say(config: RunConfig, records: Records, items: Items, arguments) -> None:
    """What the run will be, and what of the data takes no part in it."""
    own = config.pruner
    log.info("%d rows, %d samples with images, %d without; %d steps of %d samples: %d processes x %d x %d",
             len(records), len(items.images), len(items.texts), own.steps, own.batch_size, arguments.world_size,
             config.micro_batch, arguments.gradient_accumulation_steps)
    if items.left_out:
        log.info("%d rows without an image are left out: without LoRA nothing is trained in them", items.left_out)


def together() -> None:
    """Waits for the other processes."""
    if several():
        dist.barrier()


__all__ = ["RunConfig", "Trained", "train_on_conversations"]
