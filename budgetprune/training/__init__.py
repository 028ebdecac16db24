"""Training: the small real LLaVA of a task that draws its images, and the pruners that learn on top of a model."""

from .base_model import batch_inputs, build_base, find_base, held_out, load_base
from .base_training import train_base

__all__ = ["batch_inputs", "build_base", "find_base", "held_out", "load_base", "train_base"]
