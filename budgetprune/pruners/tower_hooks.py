"""How a budget token enters a vision tower and leaves it: hooks around the tower's own forward."""

from contextlib import contextmanager
from dataclasses import dataclass
from threading import local

import torch
from torch import Tensor, nn

ROWS = ("clip_vision_model", "siglip_vision_model")  # one row of tokens for each image, [R, P+N, C]
PACKED = ("qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision")  # all in one row, [S, C]


def kind_of(tower) -> str | None:
    return getattr(getattr(tower, "config", None), "model_type", None)


def check_tower(tower: nn.Module) -> None:
    """ValueError where a budget token cannot enter this tower, or one is there already."""
    kind = kind_of(tower)
    if kind not in (*ROWS, *PACKED):
        raise ValueError(f"vision_tower must be one of {', '.join((*ROWS, *PACKED))} to take a budget token, got "
                         f"{kind or type(tower).__name__}")
    first = tower.embeddings._forward_hooks if kind in ROWS else tower._forward_pre_hooks
    if any(hook in (_append, _begin) for hook in first.values()):
        raise ValueError("vision_tower must take one budget token, it has a hook for one already")


def width_of(tower: nn.Module) -> int:
    """C, the width of a tower's tokens: Qwen2-VL calls it embed_dim, and its output hidden_size."""
    return getattr(tower.config, "embed_dim", None) or tower.config.hidden_size


@dataclass
class Appended:
    """The budget tokens of one run of a tower.

    tokens: [R, C], one for each row or, in a packed tower, for each frame. at: as in BudgetToken. states: [R, C], what
    the tower made of them, once its tokens have passed `leave`. place: [R] and patches: [S], int64, where they and the
    patches stand in a packed sequence.
    """

    tokens: Tensor
    at: str = "own"
    states: Tensor | None = None
    place: Tensor | None = None
    patches: Tensor | None = None


class InProgress(local):
    """The run in progress in this thread, or None."""

    call = None


running = InProgress()


@contextmanager
def appended(call: Appended):
    """The tower runs with these budget tokens, if it has the hooks."""
    before, running.call = running.call, call
    try:
        yield call
    finally:
        running.call = before


def install(tower: nn.Module) -> list:
    """Adds the hooks that append the tokens of a run in progress; without one they do nothing. Returns their handles.

    What reads the tower's states behind it needs `leave` as a forward pre-hook. ValueError: as check_tower.
    """
    check_tower(tower)
    if kind_of(tower) in ROWS:
        handles = [tower.embeddings.register_forward_hook(_append)]
        head = getattr(tower, "head", None)
        return handles if head is None else [*handles, head.register_forward_pre_hook(leave)]
    handles = [tower.register_forward_pre_hook(_begin, with_kwargs=True),
               tower.blocks[0].register_forward_pre_hook(_insert, with_kwargs=True)]
    whole = getattr(tower, "fullatt_block_indexes", None)
    for index, block in enumerate(tower.blocks):
        hook = _join if whole is None or index in whole else _stand_apart
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", ())]
    return handles + [merger.register_forward_pre_hook(leave) for merger in mergers]


# Hooks are functions of the module, not closures: after copy.deepcopy they must act on the copy.

def _append(module, args, output):
    """Forward hook of the embeddings of a tower with rows."""
    call = running.call
    if call is None:
        return None
    if len(call.tokens) != len(output):
        raise ValueError(f"budget must have {len(output)} entries, one for each image, got {len(call.tokens)}")
    return torch.cat([output, call.tokens[:, None].to(output)], dim=1)


def leave(module, args):
    """Forward pre-hook of what reads the tower's states: without the budget token, whose state is kept aside."""
    call = running.call
    if call is None:
        return None
    states = args[0]
    if call.place is None:
        call.states = states[:, -1]
        return (states[:, :-1], *args[1:])
    call.states = states[call.place]
    return (states[call.patches], *args[1:])


@dataclass
class Packed:
    """Where the tokens of a packed sequence go. It travels in the arguments of the blocks, because those that are
    checkpointed run again when no call is in progress any more.

    ends: [R] int64, where each frame ended before. order: [S + R] int64, brings a sequence with all budget tokens
    behind it into the order of the blocks.
    """

    tokens: Tensor
    at: str
    ends: Tensor
    order: Tensor

    def turned(self, table: Tensor, own: float) -> Tensor:
        """cosines or sines of the patches [S, D] with a row for each budget token, [S + R, D]; `own` turns nothing."""
        ends = self.ends.to(table.device)
        if self.at == "own":
            rows = torch.full_like(table[:1], own).expand(len(ends), -1)
        else:
            rows = table[ends - 1] if self.at == "last" else table[nn.functional.pad(ends[:-1], (1, 0))]
        return torch.cat([table, rows])[self.order.to(table.device)]


def _begin(module, args, kwargs):
    """Forward pre-hook of a packed tower: finds out where the tokens go."""
    call = running.call
    if call is None:
        return None
    pixels, grid = args[0] if args else kwargs["hidden_states"], args[1] if len(args) > 1 else kwargs["grid_thw"]
    ends = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).cumsum(0).to(pixels.device)
    if len(call.tokens) != len(ends):
        raise ValueError(f"budget must have {len(ends)} entries, one for each frame, got {len(call.tokens)}")
    patch = torch.arange(len(pixels), device=ends.device)
    place = torch.cat([patch + torch.searchsorted(ends, patch, right=True),
                       ends + torch.arange(len(ends), device=ends.device)])
    call.patches, call.place = place.split([len(pixels), len(ends)])
    state = Packed(call.tokens, call.at, ends, place.argsort())
    return args, {**kwargs, "budgetprune_packed": state}


def _insert(module, args, kwargs):
    """Forward pre-hook of the first block, whose input gets the budget tokens, one behind each frame."""
    state = kwargs.get("budgetprune_packed")
    if state is None:
        return None
    hidden = args[0]
    return (torch.cat([hidden, state.tokens.to(hidden)])[state.order.to(hidden.device)], *args[1:]), kwargs


def _join(module, args, kwargs):
    """Forward pre-hook of a block that sees whole frames: the budget token is the last of its frame."""
    return _adapt(args, kwargs, joined=True)


def _stand_apart(module, args, kwargs):
    """Forward pre-hook of a block that sees windows: no window has a claim to the token, so it is one by itself."""
    return _adapt(args, kwargs, joined=False)


def _adapt(args, kwargs, joined):
    kwargs = dict(kwargs)
    state = kwargs.pop("budgetprune_packed", None)
    if state is None:
        return None
    bounds = kwargs["cu_seqlens"]
    ends = state.ends.to(bounds)
    if joined:
        bounds = bounds + torch.arange(len(bounds), device=bounds.device, dtype=bounds.dtype)
    else:
        moved = bounds + torch.searchsorted(ends, bounds).to(bounds)
        own = ends + torch.arange(1, len(ends) + 1, device=bounds.device, dtype=bounds.dtype)
        bounds = torch.cat([moved, own]).sort().values
    if joined and kwargs.get("max_seqlen") is not None:
        kwargs["max_seqlen"] += 1
    cos, sin = kwargs["position_embeddings"]
    turns = state.turned(cos, 1.0), state.turned(sin, 0.0)
    return args, {**kwargs, "cu_seqlens": bounds, "position_embeddings": turns}
