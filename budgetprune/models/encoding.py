"""One run of a model's encoder: what a method chooses in it, and what becomes of the features."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ..ops import select_topk
from ..pruners.relaxation import throttle
from ..selectors.base import ragged
from . import attention
from .base import Family
from .budget_rows import BudgetRows
from .choice import Group, Looks, Probe, anchors, gates_of, groups_of, joined, plan_groups, reduced
from .shrink import check_placeholders


class Encoding:
    """One call of the encoder, and what is decided in it. The tapped attention layer shows it queries and keys.

    lengths: {medium: placeholders of each of its images}. copies: how often each placeholder stays, of all images in
    order; None: nothing moves. gate: in training inside attention [N_i] of each image, over its placeholders.
    acts_on: what training does with the choice, see selectors.adaptive; None outside of training.
    """

    # Whether the projector's pre-hook hands it the features.
    before_projector = False

    def __init__(self, model, family: Family, inputs: dict, *, gates: bool):
        self.model, self.family, self.inputs = model, family, inputs
        self.pruner = model.budget_pruner
        self.selector = self.pruner.selector
        self.acts_on = self.selector.acts_on if gates else None
        self.all_stay = self.acts_on in ("attention", "noise")
        # Then an output token must stand where the token was that it is made of.
        self.in_place = self.pruner.positions(family) == "original"
        self.keeps_cls = family.keeps_cls(model, inputs)
        self.budgets = BudgetRows(model, family, inputs, self.pruner, training=gates) \
            if self.selector.budget_in_tower else None
        self.probes: dict[str, Probe] = {}
        self.lengths: dict[str, list[int]] = {}
        self.medium, self.plan, self.copies, self.gate, self.strength = None, None, None, None, None

    def __call__(self, module, query, key, **kwargs):
        self.probes[self.medium](module, query, key, **kwargs)

    def run(self, medium: str):
        """The encoder on the images (or videos) of one medium; hooks find this call meanwhile."""
        self.medium = medium
        self.probes[medium] = Probe(self.family.has_cls(self.model), self.selector.one_head)
        before, attention.encoding.call = attention.encoding.call, self
        try:
            with nullcontext() if self.budgets is None else self.budgets.enter(medium):
                return self.encoder(medium)
        finally:
            attention.encoding.call = before

    def encoder(self, medium: str):
        return self.family.encode(self.model, medium, self.inputs)

    def choose(self, tokens, grids) -> list[Group]:
        """Plans, or in training draws gates, for images with these tokens ([N_i, C] each, or [B, N, C])."""
        training = self.acts_on is not None
        counts = self.budgets.counts if self.budgets else \
            self.pruner.counts([len(x) for x in tokens], training=training)
        groups = groups_of(tokens, grids, self.looks([len(x) for x in tokens]), self.pruner,
                           training or "key" in self.selector.needs)
        if not training:
            plan_groups(groups, self.selector, counts)
            self.plan = joined(groups)
            return groups
        gates = gates_of(groups, self.selector, counts, self.pruner.noise)
        if self.acts_on == "attention":
            self.gate = gates
            return groups
        self.strength = gates
        if self.acts_on == "features":
            for group in groups:
                own = [counts[image] for image in group.members]
                kept = select_topk(torch.stack([gates[image] for image in group.members]), own)
                group.plan = ragged(kept, own)
            self.plan = joined(groups)
        return groups

    def altered(self, group: Group, tokens: Tensor) -> Tensor:
        """tokens [B, N, C] of a group, at any level, as training on features or with noise hands them on."""
        if self.strength is None:
            return tokens
        strength = torch.stack([self.strength[image] for image in group.members])
        if self.acts_on == "features":
            return tokens * strength[..., None].to(tokens.dtype)
        return throttle(tokens, strength, group.view.key)

    def looks(self, counts: list[int]) -> Looks:
        looks, needs = Looks(), self.selector.needs
        for name in needs & {"attention", "keys"}:
            packed = []
            for medium in self.lengths:
                probe = self.probes[medium]
                looks.heads = probe.heads
                rows = self.family.pack(self.model, medium, self.inputs, getattr(probe, name)())
                packed += rows
            # Line ends are found by reading back from the device, so not where there are none.
            packed = [x if len(x) == n else x[~x[:, 0].isnan()] for x, n in zip(packed, counts, strict=True)]
            setattr(looks, name, [x[:, 0] for x in packed] if name == "attention" else packed)
        if "text" in needs:
            looks.text, looks.text_valid = self.text()
        if self.budgets:
            looks.budget = self.budgets.states()
        return looks

    @torch.no_grad()
    def text(self) -> tuple[Tensor, Tensor]:
        """Embeddings [images, T, C] of the text tokens around each image, and [images, T] bool, which exist.

        What labels say is the answer is not among them: at inference it is not there yet.
        """
        ids, mask = self.inputs["input_ids"], self.inputs.get("attention_mask")
        is_text = ~self.family.is_placeholder(self.model, ids)
        if mask is not None:
            is_text = is_text & mask.bool()
        if self.inputs.get("labels") is not None:
            is_text = is_text & (self.inputs["labels"] == -100)
        order = (~is_text).long().argsort(dim=1, stable=True)[:, : int(is_text.sum(1).max())]
        embedded = self.model.get_input_embeddings()(ids.gather(1, order))
        rows = []
        for medium, lengths in self.lengths.items():
            is_media = ids == self.family.token_ids(self.model)[medium]
            check_placeholders(is_media, lengths, medium)
            rows += is_media.nonzero()[:, 0].split(lengths)
        rows = torch.stack([row[0] for row in rows])
        return embedded[rows], is_text.gather(1, order)[rows]

    def places(self, group: Group) -> tuple[Tensor, Tensor | None]:
        """[B, N] bool, the placeholders that stay, and the order of the output tokens (see choice.anchors)."""
        taken, order = anchors(group.plan, group.view.tokens.shape[1])
        return taken, order if self.in_place else None


class BeforeProjector(Encoding):
    """All images have as many patches; the projector works on those that stay. CLS may stand before them."""

    before_projector = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cls = self.keeps_cls or getattr(self.selector, "use_cls", False)
        self.packed = None

    def encoder(self, medium):
        return self.family.encode(self.model, medium, self.inputs, cls=self.cls)

    def features(self, features: Tensor) -> Tensor:
        """What the projector gets instead of `features` [images, P+N, C]."""
        prefix = int(self.cls)
        patches = features[:, prefix:]
        images, tokens = patches.shape[:2]
        self.lengths[self.medium] = [tokens + int(self.keeps_cls)] * images
        groups = self.choose(patches, self.family.grids(self.model, self.medium, self.inputs, [tokens] * images))
        added = self.cls and not self.keeps_cls  # the prompt has no place for CLS: the first patch lends its own
        if self.strength is not None:  # all images have as many patches, so they are one group
            features = torch.cat([features[:, :prefix], self.altered(groups[0], patches)], dim=1)
        if self.all_stay:
            if self.gate is not None and prefix:
                ones = torch.ones_like(self.gate[0][:1])
                self.gate = [torch.cat([ones, gate]) for gate in self.gate]
            copies = torch.ones(images, tokens, dtype=torch.long, device=features.device)
        else:
            (group,) = groups
            taken, order = self.places(group)
            copies = taken.long()
        if self.keeps_cls:
            copies = torch.cat([torch.ones_like(copies[:, :1]), copies], dim=1)
        elif added:
            copies[:, 0] += 1
        everything = self.all_stay or self.plan.keeps_all(tokens)
        self.copies = copies.flatten() if added or not everything else None
        if everything:
            return features
        self.packed = [n + prefix for n in self.plan.counts()]
        return reduced(features, self.plan, prefix, order)[None]

    def finish(self, outputs: dict) -> dict:
        for medium, out in outputs.items():
            features = list(out.pooler_output)
            if self.packed:  # one entry per image: generate() repeats entries for beams
                features = list(features[0].split(self.packed))
            outputs[medium] = type(out)(pooler_output=features)
        return outputs


class BehindEncoder(Encoding):
    """Images of any size and in several media, whose tokens may not all be patches."""

    def finish(self, outputs: dict) -> dict:
        every, inside, grids = [], [], []
        for medium, out in outputs.items():
            features = list(out.pooler_output)
            self.lengths[medium] = [len(x) for x in features]
            patches = self.family.structure(self.model, medium, self.inputs, features) or \
                [torch.ones(len(x), dtype=torch.bool, device=x.device) for x in features]
            grids += self.family.grids(self.model, medium, self.inputs, [int(x.sum()) for x in patches])
            every, inside = every + features, inside + patches
        groups = self.choose([x[m] for x, m in zip(every, inside)], grids)
        if self.gate is not None:
            self.gate = [m.float().masked_scatter(m, g) + (~m).float() for m, g in zip(inside, self.gate)]
            return outputs
        if self.strength is None and all(g.plan.keeps_all(g.view.tokens.shape[1]) for g in groups):
            return outputs
        return self.shortened(outputs, every, inside, groups)

    def shortened(self, outputs, every, inside, groups) -> dict:
        """`outputs` with what stays, or with noise in it, and self.copies."""
        levels = [every] + [sum((list(out.deepstack_features[i]) for out in outputs.values()), [])
                            for i in range(self._deep(outputs))]
        kept = [list(level) for level in levels]
        copies: list = [None] * len(every)
        for group in groups:
            if self.all_stay:
                for level, out in zip(levels, kept):
                    rows = self.altered(group, torch.stack([level[i][inside[i]] for i in group.members]))
                    for image, row in zip(group.members, rows):
                        out[image] = level[image].masked_scatter(inside[image][:, None], row)
                continue
            taken, order = self.places(group)
            if self.strength is None and group.plan.keeps_all(taken.shape[1]):
                for image in group.members:
                    copies[image] = torch.ones_like(inside[image], dtype=torch.long)
                continue
            for level, out in zip(levels, kept):
                tokens = group.view.tokens if level is every else \
                    torch.stack([level[i][inside[i]] for i in group.members])
                rows = reduced(self.altered(group, tokens), group.plan, order=order).split(group.plan.counts())
                for image, row in zip(group.members, rows):
                    out[image] = torch.cat([level[image][~inside[image]], row]) if self.keeps_cls else row
            for image, row in zip(group.members, taken):
                stay = torch.full_like(inside[image], int(self.keeps_cls), dtype=torch.long)
                copies[image] = stay.masked_scatter(inside[image], row.long())
        self.copies = None if self.all_stay else torch.cat(copies)
        result, start = {}, 0
        for medium, out in outputs.items():
            end = start + len(self.lengths[medium])
            fields = {"pooler_output": kept[0][start:end]}
            if len(kept) > 1:
                fields["deepstack_features"] = [level[start:end] for level in kept[1:]]
            result[medium], start = type(out)(**fields), end
        return result

    @staticmethod
    def _deep(outputs):
        return len(getattr(next(iter(outputs.values())), "deepstack_features", None) or ())
