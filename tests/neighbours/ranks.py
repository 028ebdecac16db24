"""What each of two gloo processes runs; a module of its own, because spawned processes import it."""

import os
import signal
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tiny import make_batch, make_llava

import budgetprune
from budgetprune.models.adapter import load_weights
from budgetprune.training.config import TrainConfig
from budgetprune.training.loop import train_pruner

RANKS = 2
LORA = r".*language_model.*\.(q_proj|v_proj)"


def batch_of(rank=None):
    """Rows of one length, hence with as many labels: the mean over ranks is the mean over the batch."""
    batch = make_batch(text=(6, 6, 6, 6), labels=True)
    part = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    return {name: value[part] for name, value in batch.items()}


def pruned_llava(lora=False):
    """A model with its controller to train; no noise, which every process would draw for itself."""
    torch.manual_seed(11)
    model = make_llava().requires_grad_(False)
    pruning = budgetprune.prune(model, "adaptive", keep=5)
    pruning.model.budget_pruner.requires_grad_(True)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=LORA, modules_to_save=["budget_pruner"]))
    pruning.model.budget_pruner.set_noise(False)
    return model.train(), pruning


def shard(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    for block in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layers):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def full(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def two_steps(model, batch):
    """(gradients of the first step, weights after the second) of all that is trained, by name."""
    named = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
    optimizer, gradients = torch.optim.SGD(named.values(), 0.1), None
    for _ in range(2):
        model(**batch).loss.backward()
        gradients = gradients or {name: full(p.grad) for name, p in named.items()}
        optimizer.step()
        optimizer.zero_grad()
    return gradients, {name: full(p) for name, p in named.items()}


class Stream(torch.utils.data.Dataset):
    """Four steps of four rows with as many labels each; Ctrl-C comes while row `stop_at` is fetched, a step ahead."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        return {name: value[0] for name, value in make_batch(text=(5,), seed=index, labels=True).items()}


def train(folder, rows, stop_at=None):
    """The weights that train_pruner leaves after four steps with `rows` rows in every process."""
    config = TrainConfig(steps=4, batch_size=rows, k_min=2, k_max=6, save_every=2, learning_rate=1e-2, noise=0.0)
    model = make_llava()
    train_pruner(model, Stream(stop_at), folder, config)
    # A shift of all logits changes no choice: what is left of its gradient is rounding, which Adam makes large.
    return {name: p.clone() for name, p in model.budget_pruner.state_dict().items() if name[-11:] != "head.2.bias"}


def work(rank, folder):
    torch.set_num_threads(1)
    # As torchrun sets them. accelerate asks for all; the port is not used, since the processes have met already.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
                            timeout=timedelta(seconds=60))  # a process that waits in vain is an error, not a hang
    results = {}
    for name, lora in (("ddp", False), ("ddp lora", True)):
        model = torch.nn.parallel.DistributedDataParallel(pruned_llava(lora)[0])
        results[name] = two_steps(model, batch_of(rank))
    model, pruning = pruned_llava()
    results["fsdp2"] = two_steps(shard(model), batch_of(rank))
    model.eval()
    with torch.no_grad():
        results["fsdp2 logits"] = model(**batch_of(rank)).logits, pruning.plan.kept
    pruning.save_pretrained(f"{folder}/sharded")
    loaded, pruning = pruned_llava()
    shard(loaded)
    dist.barrier()
    load_weights(loaded, f"{folder}/sharded")
    results["sharded"] = f"{folder}/sharded"
    results["fsdp2 loaded"] = {name: full(p) for name, p in loaded.budget_pruner.named_parameters()}
    with pytest.raises(ValueError, match="model must be pruned before fully_shard"):
        budgetprune.prune(shard(make_llava()), "adaptive", keep=5)
    results["run"], results["train_pruner"] = f"{folder}/run", train(f"{folder}/run", 2)
    try:  # row 10 is in the third step of the second process, and of no other
        train(f"{folder}/broken", 2, stop_at=10)
    except KeyboardInterrupt as stop:
        results["stop"] = str(stop)
    results["resumed"] = train(f"{folder}/broken", 2)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
