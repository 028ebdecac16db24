"""What is decided inside the language model as a prompt passes its layers: one stage after another."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..ops import attention_received, gather_tokens
from ..plan import TokenPlan
from ..selectors import Selector, TokenView
from ..selectors.base import equal
from .attention import rows_received
from .columns import Stage, columns_of, keys_at, next_stage, rows_at, text_behind

BEHIND = frozenset({"text_states", "text_keys"})  # read at every stage, in columns that only the prompt tells


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
        start = self.start.to(embeddings.device)
        is_image, exists = start.images, start.exists
        images = columns_of(is_image, max(start.counts))
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
        more = gather_tokens(self.deep[depth].to(hidden), self.at(depth).kept.to(hidden.device)).tokens
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
        seen, needs, received = self.before(depth).to(key.device), self.pruner.selector.needs, None
        keys = key[:, :, : seen.width]  # a static cache hands over columns that are still empty
        listens = needs & {"keys", "text_keys"}
        if "attention" in needs and self.rows is None:
            received = attention_received(query, keys, rows="last", mask=seen.exists, scale=module.scaling)
        elif "attention" in needs:
            rows = self.rows.to(key.device).gather(1, seen.kept.clamp_min(0).long()) & (seen.kept >= 0)
            received = rows_received(query, keys, rows, exists=seen.exists, scale=module.scaling)
        self.heard[depth] = received, keys.detach() if listens else None

    @torch.no_grad()
    def choose(self, depth: int, hidden: Tensor) -> Stage:
        """Plans, once, which columns stay from layer `depth` on, which would see `hidden`."""
        seen, selector, left = self.before(depth).to(hidden.device), self.pruner.selector, self.left[depth]
        received, keys = self.heard.pop(depth)
        columns, states = columns_of(seen.images, max(seen.counts)), hidden.detach()
        if selector.normed:
            states = self.norm(states).to(hidden.device)
        if received is not None:
            received = received.gather(1, columns.clamp_min(0))
        text, text_valid = (None if x is None else x.to(hidden.device) for x in (self.text, self.text_valid))
        view = TokenView(rows_at(states, columns), attention=received, text=text, text_valid=text_valid,
                         keys=None if keys is None else keys_at(keys, columns), valid=columns >= 0)
        if selector.needs & BEHIND:
            text = text_behind(seen.images, columns, seen.exists)
            view = replace(view, text_states=rows_at(states, text), text_valid=text >= 0,
                           text_keys=None if keys is None else keys_at(keys, text))
        plan = selector.plan(view, left)
        if plan.kept.shape[1] != max(left):
            raise ValueError(f"{selector.name}.plan must keep {left} image tokens, got {plan.kept.shape[1]} columns")
        stage = self.stages[depth] = next_stage(seen, columns, plan, left, [n + k for n, k in zip(self.words, left)])
        # Of merged tokens, those that gave them their place.
        lengths = None if equal(left) else torch.tensor(left, device=hidden.device)
        self.plans.append(plan if len(self.layers) == 1 else TokenPlan(stage.ordinal, lengths=lengths))
        self.pruner.record(self.plans[-1], stages=tuple(self.plans))
        if len(self.stages) == len(self.layers):
            self.pruner = self.norm = self.text = self.text_valid = self.rows = None  # caches live on, and are copied
        return stage
