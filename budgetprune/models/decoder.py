"""Inside the language model: hooks that let layers from some depth on see fewer image tokens.

State travels in the arguments of the decoder's layers and, between decoding steps, on the cache, so
nothing is shared between calls, and gradient checkpointing recomputes with what the forward had.
"""

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from ..ops import attention_received, gather_tokens
from ..selectors import TokenView
from . import attention

# Prompts that the caller gave to generate(); beams and several returned sequences repeat each of them.
prompts: ContextVar = ContextVar("budgetprune_prompts", default=None)


@dataclass
class DecoderState:
    """One prompt whose later layers hold fewer tokens.

    kept: [B, L'] int32 positions in the prompt, -1 padded, once chosen. mask: [B, L'] bool.
    """

    pruner: object
    is_image: Tensor
    exists: Tensor | None
    length: int
    scores: Tensor | None = None
    kept: Tensor | None = None
    mask: Tensor | None = None
    padded: bool = False
    position_embeddings: tuple | None = None
    attention_mask: Tensor | None = None

    @torch.no_grad()
    def __call__(self, module, query, key, **kwargs):
        """Probe of the layer before: the attention that every key gets from the last prompt token."""
        if self.scores is None:
            keys = key[:, :, : self.length]  # a static cache hands over columns that are still empty
            self.scores = attention_received(query, keys, rows="last", mask=self.exists, scale=module.scaling)

    def choose(self) -> None:
        """Plans, once, which columns of the prompt stay."""
        counts = self.is_image.sum(1).tolist()
        most = max(counts)
        # Columns of the image tokens of each sample, -1 padded.
        ordinal = self.is_image.cumsum(1) - 1
        column = torch.arange(self.length, device=ordinal.device).expand_as(ordinal)
        columns = column.new_full((len(ordinal), most + 1), -1)
        columns = columns.scatter(1, torch.where(self.is_image, ordinal, most), column)[:, :most]
        columns = columns.masked_fill(torch.arange(most, device=columns.device) >= ordinal[:, -1:] + 1, -1)
        received = self.scores.gather(1, columns.clamp_min(0))
        view = TokenView(received[..., None], attention=received, valid=columns >= 0)
        plan = self.pruner.selector.plan(view, _keep(self.pruner, counts))
        self.pruner.record(plan)
        stay = ~self.is_image if self.exists is None else ~self.is_image & self.exists
        chosen = columns.gather(1, plan.kept.long().clamp_min(0))
        chosen = torch.where(plan.kept >= 0, chosen, self.length)
        stay = torch.cat([stay, stay[:, :1]], dim=1).scatter(1, chosen, True)[:, : self.length]
        kept = torch.where(stay, column, self.length).sort(dim=1).values[:, : int(stay.sum(1).max())]
        self.mask = kept < self.length
        self.padded = not bool(self.mask.all())
        self.kept = kept.masked_fill(~self.mask, -1).int()


def find_image_tokens(model, kwargs: dict) -> dict:
    """Forward arguments with the image mask added, which the decoder's hook takes out again."""
    ids = kwargs.get("input_ids")
    if ids is not None:
        is_image = model.budget_pruner.family(model).is_placeholder(model, ids)
        if bool(is_image.any()):
            kwargs["budgetprune_image"] = (is_image, model.budget_pruner)
    return kwargs


def enter(module, args, kwargs):
    """Forward pre-hook of the decoder: begins a prompt, or finds the state of the one being continued."""
    image = kwargs.pop("budgetprune_image", None)
    cache = kwargs.get("past_key_values")
    state = getattr(cache, "budgetprune_state", None)
    past = cache.get_seq_length() if cache is not None else 0
    if image is not None and int(past) == 0:
        is_image, pruner = image
        counts = is_image.sum(1).tolist()
        if _keep(pruner, counts) == counts:
            pruner.record(None)
            return args, kwargs  # everything stays: not a bit may change
        length = is_image.shape[1]
        state = DecoderState(pruner, is_image, _exists(kwargs.get("attention_mask"), length), length)
        kwargs["budgetprune_probe"] = state
    if state is not None:
        kwargs["budgetprune_state"] = state
    return args, kwargs


def _keep(pruner, counts: list[int]) -> list[int]:
    """Tokens to keep of every row; the rows of one prompt share its budget."""
    repeats = len(counts) // (prompts.get() or len(counts))
    keep = pruner.counts(counts[::repeats])
    return [k for k in keep for _ in range(repeats)]


def _exists(mask, length):
    """[B, L] bool from a 2-D mask, or from the last row of the 4-D mask that generate makes for static caches."""
    if mask is None:
        return None
    if mask.dim() == 4:
        row = mask[:, 0, -1, :length]
        return row if row.dtype == torch.bool else row == 0
    return mask[:, :length].bool()


def layer(module, args, kwargs):
    """Forward pre-hook of every decoder layer that sees the kept tokens only."""
    state = kwargs.get("budgetprune_state")
    if state is None:
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    cache = kwargs.get("past_key_values")
    depth = module.self_attn.layer_idx
    if "budgetprune_probe" in kwargs:  # the prompt itself
        if depth == state.pruner.selector.layer:
            state.choose()
            kept = state.kept
            cos_sin = (e.expand(len(hidden), -1, -1) for e in kwargs["position_embeddings"])
            state.position_embeddings = tuple(gather_tokens(e, kept).tokens for e in cos_sin)
            hidden = gather_tokens(hidden, kept).tokens
            state.attention_mask = _mask(module, hidden, cache, depth, state.mask if state.padded else None)
            if cache is not None:
                cache.budgetprune_state = state
        kwargs["position_embeddings"], kwargs["attention_mask"] = state.position_embeddings, state.attention_mask
    else:  # decoding: these layers' caches are shorter than the model's own mask says
        if depth == state.pruner.selector.layer:
            mask = None
            if state.padded:
                new = int(cache.get_seq_length(depth)) + hidden.shape[1] - state.mask.shape[1]
                mask = torch.cat([state.mask, state.mask.new_ones(len(state.mask), new)], dim=1)
            state.attention_mask = _mask(module, hidden, cache, depth, mask)
        kwargs["attention_mask"] = state.attention_mask
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = None  # gaps would be read as packed sequences; cos and sin are made already
    if args:
        return (hidden, *args[1:]), kwargs
    kwargs["hidden_states"] = hidden
    return args, kwargs


def _mask(module, hidden, cache, depth, mask):
    config = getattr(module.self_attn.config, "budgetprune_base", None) or module.self_attn.config
    return create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=mask, past_key_values=cache,
                              position_ids=None, layer_idx=depth)


def leave(module, args, kwargs, output):
    """Forward hook of the last decoder layer: back to the prompt's length, zeros where tokens were dropped,
    so that logits, labels and loss keep their shapes."""
    state = kwargs.get("budgetprune_state")
    if state is None or "budgetprune_probe" not in kwargs:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    whole = hidden.new_zeros(len(hidden), state.length + 1, hidden.shape[-1])
    where = state.kept.long().remainder(state.length + 1)[..., None].expand_as(hidden)
    hidden = whole.scatter(1, where, hidden)[:, : state.length]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def install(model, pruner, family) -> list:
    """Adds the hooks and the probe; returns their handles."""
    decoder, depth = family.decoder(model), pruner.selector.layer
    layers = decoder.layers
    if not 1 <= depth < len(layers):
        raise ValueError(f"layer must be in [1, {len(layers) - 1}] for a decoder of {len(layers)} layers, got {depth}")
    attention.tap(layers[depth - 1].self_attn)
    handles = [decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_pre_hook(layer, with_kwargs=True) for block in layers[depth:]]
    handles.append(layers[-1].register_forward_hook(leave, with_kwargs=True))
    return handles

