"""Where the weights of a model are: accelerate may keep them elsewhere, fully_shard divides them over processes."""

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes. Weights that accelerate keeps elsewhere look like meta tensors."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if getattr(one, "execution_device", None) is not None:
                return torch.device(one.execution_device)
    return next(module.parameters()).device


def refuse_sharded(model: nn.Module, method: str) -> None:
    """ValueError where fully_shard came first: weights that are added later are no part of it, and drift apart."""
    if any(cls.__name__ == "FSDPModule" for cls in type(model).__mro__):
        raise ValueError(f"model must be pruned before fully_shard: {method} has weights to be sharded with it")


def whole(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are no longer divided, on every process; all of them must ask."""
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in weights.items()}


def divided_like(values: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`values`, divided as the weights of the same names are."""
    result = dict(values)
    for name, weight in weights.items():
        if name in values and hasattr(weight, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            value = values[name].to(weight.device)
            result[name] = distribute_tensor(value, weight.device_mesh, weight.placements)
    return result
