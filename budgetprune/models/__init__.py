"""How a plan enters a Hugging Face vision-language model, and leaves it. One family per file."""

from importlib import import_module
from pkgutil import iter_modules

from .adapter import from_pretrained
from .depth import DepthPruning, prune_depth, unprune_depth
from .depth_adapter import depth_from_pretrained
from .export import export_vision
from .pruning import Pruning, prune, unprune

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["DepthPruning", "Pruning", "depth_from_pretrained", "export_vision", "from_pretrained", "prune",
           "prune_depth", "unprune", "unprune_depth"]
