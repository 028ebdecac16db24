"""The question of a prompt as the language model itself reads it: one state per row, without the image."""

import torch
from torch import Tensor


@torch.no_grad()
def question_states(model, family, inputs: dict, *, turn_end=(), skip=()) -> Tensor:
    """[R, C] for the prompt's R rows: the state behind the last norm, at the last word of each row's question.

    The question is what follows the row's last image, up to the first token that labels say is the answer or to
    `turn_end`, without BOS, EOS, padding and `skip`. It is read with BOS before it, where the model has one, as plain
    text. Zeros for a row without anything to read, and for one without an image.
    """
    ids = inputs["input_ids"]
    asked, has_image = question_mask(model, family, inputs, turn_end, skip)
    config = model.config.get_text_config()
    start, decoder = config.bos_token_id, family.decoder(model)
    order = (~asked).long().argsort(dim=1, stable=True)
    lengths = asked.sum(1)
    read = ids.gather(1, order[:, : max(1, int(lengths.max()))])
    if start is not None:
        read, lengths = torch.cat([torch.full_like(ids[:, :1], start), read], dim=1), lengths + 1
    rows = (has_image & (lengths > 0)).nonzero()[:, 0]
    states = torch.zeros(len(ids), config.hidden_size, dtype=decoder.dtype, device=ids.device)
    if not len(rows):
        return states
    read, lengths = read[rows], lengths[rows]
    exists = torch.arange(read.shape[1], device=ids.device) < lengths[:, None]
    # Padding is on the right here, whatever the prompt has, so that every row begins at position 0.
    hidden = decoder(input_ids=read.masked_fill(~exists, config.pad_token_id or 0), attention_mask=exists.long(),
                     use_cache=False).last_hidden_state
    return states.index_copy(0, rows, hidden[torch.arange(len(rows), device=ids.device), lengths - 1].to(states))


def question_mask(model, family, inputs: dict, turn_end=(), skip=()) -> tuple[Tensor, Tensor]:
    """([R, L] bool, which tokens of the prompt are the question; [R] bool, which rows have an image)."""
    ids, mask, labels = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("labels")
    is_image = family.is_placeholder(model, ids)
    column = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(is_image, column, -1).amax(1, keepdim=True)
    behind = (column > last) & (last >= 0)
    if mask is not None:
        behind = behind & mask.bool()
    if labels is not None:
        behind = behind & ~_from(behind & (labels != -100))
    if turn_end:
        ends = behind.clone()
        for i, token in enumerate(turn_end):
            ends &= (ids.roll(-i, 1) == token) & (column + i < ids.shape[1])
        behind = behind & ~_from(ends)
    config = model.config.get_text_config()
    for special in (config.bos_token_id, config.eos_token_id, config.pad_token_id, list(skip)):
        for token in special if isinstance(special, list) else [special]:
            behind = behind & (ids != token) if token is not None else behind
    return behind, last[:, 0] >= 0


def _from(found: Tensor) -> Tensor:
    """[R, L] bool, True from the first True of each row on."""
    return found.cumsum(1) > 0
