"""A conversation that goes on over a pruned cache: the caller counts in tokens of their own, the cache holds fewer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Turn:
    """What a cache stands for, kept on it: the prompt `ids` [B, L] as the caller has it, and `inputs`, what the
    untouched model was given for it. Behind the prompt both have the same tokens."""

    ids: Tensor
    inputs: dict


def held(cache) -> int:
    """Tokens in the first layer of a cache, which may be None."""
    return 0 if cache is None else int(cache.get_seq_length())


def forget(cache) -> None:
    """Of an empty cache: what it stood for before it was reset."""
    for name in ("budgetprune_turn", "budgetprune_state"):
        if getattr(cache, name, None) is not None:
            delattr(cache, name)


def remember(cache, ids: Tensor, inputs: dict) -> None:
    """Notes on a cache, where there is one, what it stands for. A later turn begins with the first's prompt again."""
    if cache is not None:
        columns = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
        cache.budgetprune_turn = Turn(ids, {name: inputs[name] for name in columns if inputs.get(name) is not None})


def resume(cache, ids: Tensor, given: dict, is_image: Tensor) -> dict | None:
    """Arguments for the untouched model in a later turn, the whole conversation in input_ids; it feeds what is new.

    given: the caller's other forward arguments, without images. None: the cache holds no pruned prompt, or ids are
    the new tokens alone, as they may be given too: then attention_mask must be as long as what the model has seen.
    """
    turn, mask = getattr(cache, "budgetprune_turn", None), given.get("attention_mask")
    if turn is None:
        return None
    length = turn.ids.shape[1]
    if ids.shape[1] < length or (mask is not None and mask.shape[1] > ids.shape[1]):
        return None
    if ids.shape[0] != len(turn.ids):
        raise ValueError(f"input_ids must have {len(turn.ids)} rows, as many as past_key_values, got {ids.shape[0]}")
    if not torch.equal(ids[:, :length], turn.ids):
        raise ValueError("input_ids must begin with the prompt that past_key_values holds, column by column, padding "
                         "included, or be the new tokens alone with attention_mask over what the model has seen")
    if bool(is_image[:, length:].any()):
        raise ValueError("input_ids must not have new images behind those that past_key_values holds: a pruned cache "
                         "cannot take them; start anew, with the whole conversation and an empty cache")
    new = ids[:, length:]
    tail = torch.ones_like(new) if mask is None else mask[:, length:]
    before = turn.inputs
    inputs = {"input_ids": torch.cat([before["input_ids"], new], dim=1)}
    past = before.get("attention_mask")
    past = torch.ones_like(before["input_ids"]) if past is None else past
    inputs["attention_mask"] = torch.cat([past, tail.to(past.dtype)], dim=1)
    positions = before.get("position_ids")
    if positions is not None:
        following = positions[..., -1:] + tail.cumsum(1)
        inputs["position_ids"] = torch.cat([positions.expand(*positions.shape[:-2], *following.shape[-2:-1], -1),
                                            following], dim=-1)
    for name, value in given.items():
        if name not in inputs and isinstance(value, Tensor) and value.shape[:2] == ids.shape and name in before:
            value = torch.cat([before[name], value[:, length:]], dim=1)
        inputs.setdefault(name, value)
    return inputs
