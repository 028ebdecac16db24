"""Training: the small real LLaVA that the digits task needs, and the pruners that learn on top of a model."""

from .base_model import build_digits_llava, digits_batch_inputs, find_base, held_out_accuracy, load_base
from .base_training import train_base

__all__ = ["build_digits_llava", "digits_batch_inputs", "find_base", "held_out_accuracy", "load_base", "train_base"]
