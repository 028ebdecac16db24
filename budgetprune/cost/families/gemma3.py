"""Gemma 3: SigLIP, patches averaged in squares, one matrix."""

from ..shapes import ProjectorShape, VlmShape
from .base import Family, parts


class Gemma3(Family):
    """The tokens of one image see each other in both directions, so of causal attention more is needed than half;
    "causal" counts half here, "full" all."""

    model_types = ("gemma3",)

    @classmethod
    def shape(cls, config):
        tower, decoder, notes = parts(config)
        merge = tower.side // round(config.count("mm_tokens_per_image") ** 0.5)
        projector = ProjectorShape(((tower.hidden, decoder.hidden),), merge, vectors=tower.hidden)
        return VlmShape(tower, decoder, projector, model_type=config.get("model_type"), notes=notes)
