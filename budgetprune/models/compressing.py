"""How a compressor enters a model: its K tokens go through the projector, and K placeholders stay for them."""

from functools import partial

import torch
from torch import Tensor

from ..compress import Compressor, Site
from ..selectors import TokenView
from . import attention
from .choice import anchors
from .encoding import BeforeProjector
from .question import question_states
from .shrink import check_placeholders


class Compressing(BeforeProjector):
    """One call of the encoder whose features a compressor replaces. It hears layers of the tower on their way."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.layers: dict[int, Tensor] = {}
        self.projected: Tensor | None = None

    def features(self, features: Tensor) -> Tensor:
        """What the model's projector gets instead of `features` [images, P+N, C]; nothing where a copy of it stands
        in, whose tokens wait in `projected`."""
        compressor, prefix = self.selector, int(self.keeps_cls)
        patches = features[:, prefix:]
        images, tokens = patches.shape[:2]
        if tokens != compressor.site.tokens:
            rows, columns = compressor.site.grid
            raise ValueError(f"pixel_values must make {rows} x {columns} patches, which {compressor.name} is made for, "
                             f"got {tokens} of them")
        self.lengths[self.medium] = [tokens + prefix] * images
        made = compressor(patches, self.heard(features.device), self.question(images))
        self.plan = compressor.plan(TokenView(patches), [compressor.count] * images)
        copies = anchors(self.plan, tokens)[0].long()
        if prefix:
            copies = torch.cat([torch.ones_like(copies[:, :1]), copies], dim=1)
            made = torch.cat([features[:, :1].to(made), made], dim=1)
        self.copies = copies.flatten()
        if compressor.projector is None:
            return made.to(features)
        self.projected = compressor.projector(made).to(features)
        return features[:, :0]

    def heard(self, device) -> Tensor | None:
        """[images, N, L * C] of the tower's layers, or None where the compressor hears none."""
        wanted = self.selector.heard(self.selector.site.depth)
        if not wanted:
            return None
        prefix = int(self.family.has_cls(self.model))
        return torch.cat([self.layers[i][:, prefix:].to(device) for i in wanted], dim=2)

    def question(self, images: int) -> Tensor | None:
        """[images, C], of each image the question of its row; None where the compressor asks for none."""
        if "text" not in self.selector.needs:
            return None
        options, ids = self.selector.options(), self.inputs["input_ids"]
        is_image = ids == self.family.token_ids(self.model)[self.medium]
        lengths = self.lengths[self.medium]
        check_placeholders(is_image, lengths, self.medium)
        rows = is_image.nonzero()[:, 0][:: lengths[0]]
        states = question_states(self.model, self.family, self.inputs, turn_end=options["turn_end"],
                                 skip=options["skip"])
        return states[rows]


# Hooks, functions of the module: after copy.deepcopy they must act on the copy.

@torch.compiler.disable  # as `encode.project`
def stand_in(module, args, output):
    """Forward hook of the projector: what the compressor's copy of it made, where there is one."""
    call = attention.encoding.call
    return None if call is None or not call.before_projector else call.projected


def hear_before(module, args):
    """Forward pre-hook of the tower's first block: hidden state 0."""
    _hear(0, args[0])


def hear(module, args, output, *, layer: int):
    """Forward hook of the tower's block `layer` - 1."""
    _hear(layer, output[0] if isinstance(output, tuple) else output)


def _hear(layer, states):
    call = attention.encoding.call
    if isinstance(call, Compressing):
        call.layers[layer] = states


def bind(compressor: Compressor, model, family, keep) -> None:
    """Makes a compressor for a model. ValueError: a count that it cannot have, or a model that it cannot enter."""
    width, tokens, grid = family.features(model)
    if not family.before_projector:
        raise ValueError(f"model must be one whose images all have one grid of patches before its projector: "
                         f"{compressor.name} stands between tower and projector, where {type(model).__name__} has no "
                         "place for it; use a method that selects")
    site = Site(width, grid, model.config.vision_config.hidden_size, len(family.blocks(model)),
                model.get_input_embeddings().embedding_dim)
    compressor.bind(site, compressor.count_of(keep, tokens), family.projector(model))


def install(compressor: Compressor, model, family) -> list:
    """Adds the hooks; returns their handles."""
    blocks, handles = family.blocks(model), []
    for layer in sorted(set(compressor.heard(len(blocks)))):
        handles.append(blocks[layer - 1].register_forward_hook(partial(hear, layer=layer)) if layer else
                       blocks[0].register_forward_pre_hook(hear_before))
    if compressor.projector is not None:
        handles.append(family.projector(model).register_forward_hook(stand_in))
    return handles
