"""What the stages of a prompt inside the language model decided: the columns and the mask of each layer."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers.masking_utils import create_causal_mask

from ..ops import attention_received, gather_tokens, merge_tokens
from ..plan import TokenPlan
from ..selectors import Selector, TokenView
from ..selectors.base import equal
from .attention import rows_received

BEHIND = frozenset({"text_states", "text_keys"})  # read at every stage, in columns that only the prompt tells


def columns_of(wanted: Tensor, longest: int) -> Tensor:
    """[B, N] int64, the columns where `wanted` [B, L] is True, ascending, -1 padded to the longest row's N."""
    length = wanted.shape[1]
    column = torch.arange(length, device=wanted.device)
    found = torch.where(wanted, column, length).sort(dim=1).values[:, :longest]
    return found.masked_fill(found == length, -1)


def text_behind(images: Tensor, columns: Tensor, exists: Tensor | None) -> Tensor:
    """[B, T] int64, the columns of the text behind the image tokens, which are at `columns`; -1 padded."""
    is_text = ~images & (torch.arange(images.shape[1], device=images.device) > columns.amax(1, keepdim=True))
    is_text = is_text if exists is None else is_text & exists
    return columns_of(is_text, int(is_text.sum(1).max()))


def rows_at(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, L, C] at `columns` [B, N]; what stands in padding is column 0."""
    return x.gather(1, columns.clamp_min(0)[..., None].expand(-1, -1, x.shape[2]))


def _keys_at(keys: Tensor, columns: Tensor) -> Tensor:
    where = columns.clamp_min(0)[:, None, :, None]
    return keys.gather(2, where.expand(-1, keys.shape[1], -1, keys.shape[3]))


@dataclass
class Stage:
    """What layers see from one stage to the next; of a prompt's first layers, everything.

    kept: [B, L'] int32 columns of the prompt, -1 padded. exists: [B, L'] bool, None: all do. images: [B, L'] bool.
    ordinal: [B, N'] int32, which of the prompt's image tokens each is that is left, -1 padded; counts: how many.
    local: `kept` as columns of what was seen before. merge: (columns of image tokens before, lists, columns after).
    """

    kept: Tensor
    exists: Tensor | None
    images: Tensor
    ordinal: Tensor
    counts: list[int]
    local: Tensor | None = None
    merge: tuple | None = None
    position_embeddings: tuple | None = None
    attention_mask: Tensor | None = None

    @property
    def width(self) -> int:
        return self.kept.shape[1]

    def narrow(self, hidden: Tensor) -> Tensor:
        """Hidden states of the layer before as this stage's layers see them."""
        out = gather_tokens(hidden, self.local).tokens
        if self.merge is None:
            return out
        before, lists, after = self.merge
        merged = merge_tokens(rows_at(hidden, before), *lists)
        after = after.masked_fill(after < 0, self.width)[..., None].expand_as(merged)
        return torch.cat([out, out[:, :1]], dim=1).scatter(1, after, merged)[:, : self.width]

    def prepare(self, module, hidden: Tensor, cache, embeddings, own: Tensor | None) -> None:
        """Positions and mask of the prompt itself, which every layer of the stage shares.

        own: the mask [B, 1, L, S] of the whole prompt, where causality is not all there is to it.
        """
        cos_sin = (e.expand(len(hidden), -1, -1) for e in embeddings)
        self.position_embeddings = tuple(gather_tokens(e, self.kept).tokens for e in cos_sin)
        if own is None or len(own.shape) == 2:  # flash attention is told what exists, and nothing else
            self.attention_mask = _mask(module, hidden, cache, self.exists)
        else:
            self.attention_mask = self._narrowed(own)

    def _narrowed(self, own):
        """Rows and columns of a mask at what stays; columns of a static cache that are still empty follow."""
        where, there = self.kept.long().clamp_min(0), self.kept >= 0
        if not isinstance(own, Tensor):  # flex attention's

            def seen(b, h, row, column):
                before = own.mask_mod(b, h, where[b, row], where[b, column])
                return (before & there[b, row] & there[b, column]) | (row == column)

            return create_block_mask(seen, len(where), None, self.width, self.width, device=where.device)
        hidden = torch.finfo(own.dtype).min if own.is_floating_point() else False
        seen = 0 if own.is_floating_point() else True
        rows = own.expand(len(where), -1, -1, -1).gather(2, where[:, None, :, None].expand(-1, 1, -1, own.shape[3]))
        both = rows.gather(3, where[:, None, None].expand(-1, 1, self.width, -1))
        both = both.masked_fill(~there[:, None, None], hidden)
        # A row of padding sees itself: what sees nothing may become NaN, and NaN times zero is NaN.
        alone = ~there[:, None, :, None] & torch.eye(self.width, dtype=torch.bool, device=own.device)
        both = both.masked_fill(alone, seen)
        static = own.shape[3] > own.shape[2]
        empty = own.shape[3] - self.width if static else 0
        return torch.cat([both, both.new_full((*both.shape[:3], empty), hidden)], dim=3)

    def step(self, module, hidden: Tensor, cache, tail: Tensor | None, past: int) -> None:
        """The mask of a step behind the prompt: `past` tokens were seen since, `tail` [B, .] says which of them and of
        the step's own exist. hidden: as the first layer gets it, of any width."""
        depth, new = module.self_attn.layer_idx, past + hidden.shape[1]
        held = int(cache.get_seq_length(depth))
        if held != self.width + past:
            raise ValueError(f"past_key_values must hold {self.width + past} tokens in layer {depth}, {self.width} of "
                             f"the pruned prompt and {past} behind it, got {held}: its layers differ in length, so "
                             "shorten it by crop(-n), which takes n tokens off each, not to a length")
        mask = None
        if self.exists is not None or tail is not None:
            mask = torch.ones(len(self.kept), self.width, dtype=torch.bool, device=hidden.device)
            mask = mask if self.exists is None else self.exists
            mask = mask.repeat_interleave(len(hidden) // len(mask), dim=0)  # one prompt continued in several ways
            tail = mask.new_ones(len(mask), new) if tail is None else tail
            mask = torch.cat([mask, tail], dim=1)
        self.attention_mask = _mask(module, hidden, cache, mask)


def _mask(module, hidden, cache, mask):
    if mask is None and getattr(cache, "is_compileable", False):  # flash attention would see its empty columns
        seen = int(cache.get_seq_length(module.self_attn.layer_idx)) + hidden.shape[1]
        mask = torch.ones(len(hidden), seen, dtype=torch.bool, device=hidden.device)
    config = getattr(module.self_attn.config, "budgetprune_base", None) or module.self_attn.config
    return create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=mask, past_key_values=cache,
                              position_ids=None, layer_idx=module.self_attn.layer_idx)


@dataclass
class DecoderState:
    """One prompt whose later layers hold fewer tokens; as a probe it hears the attention layers before its stages.

    layers: where its stages are. left: {layer: image tokens of each sample from there on}. words: the other tokens of
    each sample. norm: the one behind the decoder's last layer. tail: see Stage.step. traceable: whether the method
    reads nothing back either as it plans.

    All sizes are known before the first layer runs, only which columns they are is not. So no stage reads anything back
    from the device, and torch.compile may have it in the graph of the layers around it.
    """

    pruner: object
    layers: tuple[int, ...]
    left: dict[int, list[int]]
    words: list[int]
    length: int
    start: Stage
    text: Tensor | None = None
    text_valid: Tensor | None = None
    rows: Tensor | None = None
    heard: dict[int, tuple] = field(default_factory=dict)
    stages: dict[int, Stage] = field(default_factory=dict)
    plans: list[TokenPlan] = field(default_factory=list)
    deep: dict[int, Tensor] = field(default_factory=dict)
    norm: object = None
    prefix_lm: bool = False
    traceable: bool = False
    past: int = 0
    tail: Tensor | None = None

    @classmethod
    def begin(cls, pruner, layers, is_image: Tensor, exists: Tensor | None, keep: list[int]):
        """Nothing is dropped yet. keep: image tokens of each sample after the last stage."""
        rows, length = is_image.shape
        column = torch.arange(length, device=is_image.device)
        kept = column.int().expand(rows, -1)
        is_word = ~is_image if exists is None else ~is_image & exists
        counts, words = torch.stack([is_image.sum(1), is_word.sum(1)]).tolist()
        images = columns_of(is_image, max(counts))
        ordinal = torch.arange(images.shape[1], dtype=torch.int32, device=images.device).expand_as(images)
        start = Stage(kept, exists, is_image, ordinal.masked_fill(images < 0, -1), counts)
        left, seen = {}, counts
        for number, layer in enumerate(layers):
            wanted = [max(1, pruner.selector.stage_keep(k, number, n)) if n else 0 for k, n in zip(keep, counts)]
            left[layer] = seen = [min(pair) for pair in zip(seen, wanted)]
        selector = pruner.selector
        traceable = type(selector).plan is Selector.plan and not selector.needs & BEHIND
        return cls(pruner, layers, left, words, length, start, traceable=traceable)

    @property
    def hears_text(self) -> bool:
        return "text" in self.pruner.selector.needs

    @torch.compiler.disable
    @torch.no_grad()
    def hear_text(self, embeddings: Tensor) -> None:
        """The prompt's text for the method, which may name the rows of it that it wants to hear."""
        is_image, exists = self.start.images, self.start.exists
        images = columns_of(is_image, max(self.start.counts))
        column = torch.arange(self.length, device=is_image.device)
        columns = text_behind(is_image, images, exists)
        self.text, self.text_valid = rows_at(embeddings, columns), columns >= 0
        rows = self.pruner.selector.rows(TokenView(rows_at(embeddings, images), text=self.text,
                                                   text_valid=self.text_valid, valid=images >= 0))
        if rows is not None:
            last = column[-1:].expand(len(images)) if exists is None else torch.where(exists, column, -1).amax(1)
            wanted = torch.where(rows, columns, self.length)
            wanted = torch.cat([wanted, torch.where(rows.any(1), self.length, last)[:, None]], dim=1)
            self.rows = is_image.new_zeros(len(images), self.length + 1).scatter(1, wanted, True)[:, : self.length]

    def add_deep(self, visual: Tensor, features: list[Tensor]) -> None:
        """Features that are added behind a layer where `visual` [B, L] is True; those of the layers from the first
        stage on are kept here, [B, L, C]."""
        for depth, x in enumerate(features):
            if depth >= self.layers[0]:
                whole = x.new_zeros(*visual.shape, x.shape[-1])
                self.deep[depth] = whole.masked_scatter(visual[..., None].to(x.device), x)

    def with_deep(self, depth: int, hidden: Tensor) -> Tensor:
        """The output of layer `depth` with what is added behind it."""
        if depth not in self.deep:
            return hidden
        more = gather_tokens(self.deep[depth].to(hidden), self.at(depth).kept).tokens
        return hidden + more

    def before(self, depth: int) -> Stage:
        """What the layer before `depth` sees."""
        earlier = [layer for layer in self.layers if layer < depth]
        return self.stages[earlier[-1]] if earlier else self.start

    def at(self, depth: int) -> Stage:
        """What layer `depth` sees."""
        return self.before(depth + 1)

    @torch.no_grad()
    def __call__(self, module, query, key, **call):
        """Probe of the layer before a stage. Gradient checkpointing calls it again; what was heard first counts."""
        depth = module.layer_idx + 1
        if depth not in self.layers or depth in self.stages or depth in self.heard:
            return
        seen, needs, received = self.before(depth), self.pruner.selector.needs, None
        keys = key[:, :, : seen.width]  # a static cache hands over columns that are still empty
        listens = needs & {"keys", "text_keys"}
        if "attention" in needs and self.rows is None:
            received = attention_received(query, keys, rows="last", mask=seen.exists, scale=module.scaling)
        elif "attention" in needs:
            rows = self.rows.gather(1, seen.kept.clamp_min(0).long()) & (seen.kept >= 0)
            received = rows_received(query, keys, rows, exists=seen.exists, scale=module.scaling)
        self.heard[depth] = received, keys.detach() if listens else None

    @torch.no_grad()
    def choose(self, depth: int, hidden: Tensor) -> Stage:
        """Plans, once, which columns stay from layer `depth` on, which would see `hidden`."""
        seen, selector, left = self.before(depth), self.pruner.selector, self.left[depth]
        received, keys = self.heard.pop(depth)
        columns, states = columns_of(seen.images, max(seen.counts)), hidden.detach()
        if selector.normed:
            states = self.norm(states)
        if received is not None:
            received = received.gather(1, columns.clamp_min(0))
        view = TokenView(rows_at(states, columns), attention=received, text=self.text, text_valid=self.text_valid,
                         keys=None if keys is None else _keys_at(keys, columns), valid=columns >= 0)
        if selector.needs & BEHIND:
            text = text_behind(seen.images, columns, seen.exists)
            view = replace(view, text_states=rows_at(states, text), text_valid=text >= 0,
                           text_keys=None if keys is None else _keys_at(keys, text))
        plan = selector.plan(view, left)
        if plan.kept.shape[1] != max(left):
            raise ValueError(f"{selector.name}.plan must keep {left} image tokens, got {plan.kept.shape[1]} columns")
        stage = self.stages[depth] = _stage(seen, columns, plan, left, [n + k for n, k in zip(self.words, left)])
        # Of merged tokens, those that gave them their place.
        lengths = None if equal(left) else torch.tensor(left, device=hidden.device)
        self.plans.append(plan if len(self.layers) == 1 else TokenPlan(stage.ordinal, lengths=lengths))
        self.pruner.record(self.plans[-1], stages=tuple(self.plans))
        if len(self.stages) == len(self.layers):
            self.pruner = self.norm = self.text = self.text_valid = self.rows = None  # caches live on, and are copied
        return stage


def _stage(seen: Stage, columns: Tensor, plan: TokenPlan, counts: list[int], lengths: list[int]) -> Stage:
    """The columns that a plan for the image tokens at `columns` leaves: `counts` of them, `lengths` with the words."""
    width, there = seen.width, plan.kept >= 0
    chosen = columns.gather(1, plan.kept.long().clamp_min(0)).masked_fill(~there, width)
    stay = ~seen.images if seen.exists is None else ~seen.images & seen.exists
    stay = torch.cat([stay, stay[:, :1]], dim=1).scatter(1, chosen, True)[:, :width]
    local = columns_of(stay, max(lengths))
    exists = local >= 0
    images = seen.images.gather(1, local.clamp_min(0)) & exists
    kept = seen.kept.gather(1, local.clamp_min(0)).masked_fill(~exists, -1)
    ordinal = seen.ordinal.gather(1, plan.kept.long().clamp_min(0)).masked_fill(~there, -1)
    merge = None if plan.merge is None else (columns, plan.merge, columns_of(images, max(counts)))
    exists = None if equal(lengths) else exists
    return Stage(kept, exists, images, ordinal, counts, local.int(), merge)
