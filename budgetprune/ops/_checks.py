"""Argument checks shared by the op faces: the name, what was wanted, what came."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_float(name, tensor, dims):
    """`tensor` is a float tensor whose dimensions are named by `dims`, for example "B N C"."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dim() != len(dims.split()):
        raise ValueError(f"{name} must be [{', '.join(dims.split())}], got shape {list(tensor.shape)}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def check_like(name, tensor, shape, dtypes, device):
    """`tensor` has exactly this shape, one of these dtypes, and lives on `device`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(str(d) for d in dtypes)}, got {tensor.dtype}")
    check_device(name, tensor, device)


def check_device(name, tensor, device):
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def check_keep(keep, batch, tokens, device, max_keep=None):
    """`keep` as an op takes it: (None, K) for one count, (int32 [B] on `device`, Kmax) for one per row.

    A tensor on another device than the CPU is read back once for its maximum unless `max_keep` names it.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, torch.SymInt, list, tuple, Tensor)):
        raise TypeError(f"keep must be an int, a sequence of ints or an int32 Tensor [B], got {type(keep).__name__}")
    if isinstance(keep, (int, torch.SymInt)):
        if keep < 0 or keep > tokens:
            raise ValueError(f"keep must be in [0, N={tokens}], got {keep}")
        return None, keep
    if isinstance(keep, (list, tuple)):
        if len(keep) != batch:
            raise ValueError(f"keep must have one count per row, B={batch}, got {len(keep)}")
        for count in keep:
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"keep must hold ints, got {type(count).__name__}")
            if not 0 <= count <= tokens:
                raise ValueError(f"keep must be in [0, N={tokens}], got {count}")
        longest = max(keep, default=0)
        keep = torch.tensor(keep, dtype=torch.int32, device=device)
    else:
        check_like("keep", keep, (batch,), (torch.int32,), device)
        longest = None
    if max_keep is None:
        max_keep = longest if longest is not None else (int(keep.max()) if keep.numel() else 0)
    if max_keep < 0 or max_keep > tokens:
        raise ValueError(f"max_keep must be in [0, N={tokens}], got {max_keep}")
    if longest is not None and longest > max_keep:
        raise ValueError(f"max_keep must be at least the largest keep, {longest}, got {max_keep}")
    return keep, max_keep
