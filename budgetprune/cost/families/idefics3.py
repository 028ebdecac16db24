"""Idefics 3 and SmolVLM: SigLIP on crops, pixel shuffle, one matrix."""

from ..shapes import ProjectorShape, VlmShape
from .base import Family, parts
from .towers import Siglip


class Idefics3Tower(Siglip):
    """It has no pooling head. Crops are counted square."""

    model_types = ("idefics3_vision", "smolvlm_vision")

    @classmethod
    def pooling_head(cls, vision):
        return False


class Idefics3(Family):
    model_types = ("idefics3", "smolvlm")

    @classmethod
    def shape(cls, config):
        tower, decoder, notes = parts(config)
        merge = config.count("scale_factor")
        projector = ProjectorShape(((tower.hidden * merge**2, decoder.hidden),), merge)
        return VlmShape(tower, decoder, projector, model_type=config.get("model_type"), notes=notes)
