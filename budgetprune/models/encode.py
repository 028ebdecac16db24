"""The vision side: encode the images, let a method choose, hand what stays to the untouched model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import attention_received, gather_tokens, merge_tokens
from ..plan import TokenPlan
from ..selectors import TokenView
from . import attention
from .shrink import check_placeholders, shrink


@dataclass
class Encoding:
    """One call of the encoder. The tapped attention layer shows it queries and keys; the projector's
    pre-hook hands it the features and gets back those that stay."""

    pruner: object
    cls: bool  # row 0 of the features is CLS, which goes to the language model
    gates: bool  # training: everything stays, a gate is drawn
    grid: tuple[int, int]
    queries: Tensor | None = None
    keys: Tensor | None = None
    plan: TokenPlan | None = None
    gate: Tensor | None = None
    packed: bool = False

    def __call__(self, module, query, key):
        self.queries, self.keys = query, key

    def view(self, tokens: Tensor) -> TokenView:
        needs, heard = self.pruner.selector.needs, self.queries is not None
        prefix = self.queries.shape[2] - tokens.shape[1] if heard else 0
        received = None
        if "attention" in needs:
            received = attention_received(self.queries[:, :, :1], self.keys, rows="cls")[:, prefix:]
        draws = self.gates or "key" in needs
        return TokenView(tokens, attention=received, queries=self.queries, keys=self.keys, prefix=prefix,
                         grid=self.grid, key=self.pruner.next_key(tokens) if draws else None)

    def features(self, features: Tensor) -> Tensor:
        """What the projector gets instead of `features` [images, P+N, C]."""
        prefix = int(self.cls)
        patches = features[:, prefix:]
        counts = self.pruner.counts([patches.shape[1]] * len(patches), training=self.gates)
        if self.gates:
            self.gate = self.pruner.selector.gate(self.view(patches), counts, self.pruner.noise)
            return features
        self.plan = self.pruner.selector.plan(self.view(patches), counts)
        if self.plan.keeps_all(patches.shape[1]):
            return features
        self.packed = True
        counts, kept = self.plan.counts(), self.plan.kept
        if self.plan.merge is not None:  # then what stays is all output tokens of a sample, the first of its row
            merged = merge_tokens(patches, *self.plan.merge)
            features = torch.cat([features[:, :prefix], merged], dim=1) if prefix else merged
            place = torch.arange(self.plan.width, dtype=torch.int32, device=kept.device).expand(len(kept), -1)
            lengths = self.plan.lengths
            kept = place if lengths is None else place.masked_fill(place >= lengths[:, None], -1)
        total = sum(counts) + prefix * len(patches)
        return gather_tokens(features, kept, prefix=prefix, packed=True, total=total).tokens[None]

    def copies(self, tokens: int, placeholders: int) -> Tensor:
        """[images, placeholders] int: how often each image placeholder of the prompt stays."""
        kept = self.plan.kept
        if self.plan.merge is None:
            stay = self.plan.mask(tokens).long()
        else:
            counts = torch.tensor(self.plan.counts(), device=kept.device)[:, None]
            stay = (torch.arange(tokens, device=kept.device) < counts).long()
        if placeholders > tokens:  # the prompt has a place for CLS
            return torch.cat([torch.ones_like(stay[:, :1]), stay], dim=1)
        if self.cls:  # it has none: the first placeholder lends its own
            stay[:, 0] += 1
        return stay


def project(module, args):
    """Forward pre-hook of the projector."""
    call = attention.encoding.get()
    return None if call is None else (call.features(args[0]), *args[1:])


def encode(model, inputs: dict, *, gates: bool):
    """Replaces the images of `inputs` by their kept features, and shrinks the prompt to match.

    Returns (forward arguments for the untouched model, what was decided). With `gates` the sequence keeps
    all its tokens, and the arguments carry the gates for attention instead.
    """
    pruner, family = model.budget_pruner, model.budget_pruner.family(model)
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError("input_ids must be given with pixel_values: a pruned model finds its image tokens there")
    keeps_cls = family.keeps_cls(model, inputs)
    emit_cls = keeps_cls or getattr(pruner.selector, "use_cls", False)
    _, _, grid = family.features(model)
    call = Encoding(pruner, cls=emit_cls, gates=gates, grid=grid)
    token = attention.encoding.set(call)
    try:
        outputs = family.encode(model, inputs, cls=emit_cls)
    finally:
        attention.encoding.reset(token)

    is_image = ids == family.image_token_id(model)
    decided = call.gate if gates else call.plan.kept
    images, tokens = len(decided), grid[0] * grid[1]
    placeholders = tokens + int(keeps_cls)
    check_placeholders(is_image, images, placeholders)
    rest = {name: value for name, value in inputs.items() if name not in family.image_arguments}
    pad = model.config.get_text_config().pad_token_id or 0
    added_cls = emit_cls and not keeps_cls
    if gates:
        copies = torch.ones(images, placeholders, dtype=torch.long, device=ids.device)
        copies[:, 0] += int(added_cls)
    elif call.packed or added_cls:
        copies = call.copies(tokens, placeholders)
    else:
        copies = None
    if copies is not None and (not gates or added_cls):
        rest, index, valid = shrink(rest, is_image, copies, positions=pruner.selector.positions, pad_token_id=pad)
        pruner.record(call.plan, index, valid)
    else:
        pruner.record(call.plan)
    if gates:
        rest["budgetprune_gate"] = sequence_gate(rest, family.image_token_id(model), call.gate, emit_cls)
    features = list(outputs.pooler_output)
    if call.packed:  # one entry per image: generate() repeats entries for beams
        features = list(features[0].split([n + int(emit_cls) for n in call.plan.counts()]))
    rest["mm_encoder_outputs"] = {"image": type(outputs)(pooler_output=features)}
    return rest


def sequence_gate(inputs: dict, image_token_id: int, gate: Tensor, has_cls: bool) -> tuple[Tensor, Tensor | None]:
    """(gate [B, L] over the whole sequence, 1 for all that is no patch; mask [B, L] bool or None)."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if has_cls:
        gate = torch.cat([torch.ones_like(gate[:, :1]), gate], dim=1)
    full = torch.ones(ids.shape, dtype=gate.dtype, device=ids.device)
    full = full.masked_scatter(ids == image_token_id, gate)
    return full, None if mask is None else mask.bool()
