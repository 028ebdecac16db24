"""Runs on conversations, in one process or in each of two; a module of its own, because spawned processes import it."""

import json
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer

from budgetprune.training import run
from budgetprune.training.base_model import build_base
from budgetprune.training.config import TrainConfig
from budgetprune.training.run_config import RunConfig

RANKS = 2
PRUNER = TrainConfig(k_min=4, k_max=16, k_per_sample=True, steps=4, batch_size=4, save_every=2, learning_rate=1e-2,
                     noise=1.0)
CASES = {  # LoRA is there for rows without an image, one question at a time for a method that looks at it
    "pruner": {"pruner": PRUNER},
    "lora": {"pruner": replace(PRUNER, lora_rank=2), "checkpointing": True},
    "question": {"pruner": replace(PRUNER, method="adaptive_query"), "train_projector": True},
    # Adam steps by the learning rate where a gradient is nothing but rounding, as of a few of so many weights: a small
    # one, so that such steps stay below what the tests allow for.
    "inside": {"pruner": replace(PRUNER, options={"fusion": "encoder"}, learning_rate=1e-3)},
    "quecc": {"pruner": replace(PRUNER, method="quecc", k_min=16, k_max=16, k_per_sample=False, learning_rate=1e-3)},
}


def config_of(data, case, /, **changes):
    given = {"model": "digits", "data": str(data / "data.json"), "images": str(data / "images"), "epochs": None,
             "micro_batch": 2, "workers": 0, "max_skipped": 0.5, "checkpointing": False, **CASES[case], **changes}
    return RunConfig(**given)


def load(dtype):
    model, processor = build_base()
    return model.to(dtype), processor


def train(data, out, case, /, stop_at=None, tell=None, **changes):
    """(weights that are trained, rows of the log, samples skipped, the model); Ctrl-C comes behind step `stop_at`."""
    def told(step, values):
        if step == stop_at and not values:
            signal.raise_signal(signal.SIGINT)

    result = run.train_on_conversations(load, config_of(data, case, **changes), out, tell=tell or told)
    model = result.pruning.model
    weights = {name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone()
               for name, p in model.named_parameters() if p.requires_grad}
    return weights, rows_of(out), result.skipped, model


def rows_of(out):
    return [json.loads(line) for line in (Path(out) / "train_log.jsonl").read_text().splitlines()]


def stop_both_and_go_on(results, rank, data, out, case, name="", **changes):
    """Ctrl-C comes to the second process alone."""
    try:
        train(data, out, case, stop_at=3 if rank == 1 else None, **changes)
    except KeyboardInterrupt as stop:
        results[name + "stop"] = str(stop)
    results[name + "resumed"] = train(data, out, case, **changes)
    names = {type(p).__name__ for p in results[name + "resumed"][3].parameters()}
    results[name + "resumed"], results[name + "parameters"] = results[name + "resumed"][:3], names


def as_on_gpus(create):
    """accelerate divides weights on GPUs only; told that these processes have some, it does so on the CPU, too."""
    def told(trainer):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return create(trainer)

    return told


def work(rank, folder, data):
    torch.set_num_threads(1)
    # As torchrun sets them. accelerate asks for all; the port is not used, since the processes have met already.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
                            timeout=timedelta(seconds=60))  # a process that waits in vain is an error, not a hang
    folder, data, results = Path(folder), Path(data), {}
    for case in ("lora", "inside"):
        results[case] = train(data, folder / case, case)[:3]
    stop_both_and_go_on(results, rank, data, folder / "pruner", "pruner")
    Trainer.create_accelerator_and_postprocess = as_on_gpus(Trainer.create_accelerator_and_postprocess)
    stop_both_and_go_on(results, rank, data, folder / "fsdp", "lora", "fsdp ", fsdp=True)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
