"""How the configurations of families of models are read; one family per file, which lists itself."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Family, known_shapes, shape_of

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

KNOWN = known_shapes()

__all__ = ["KNOWN", "Family", "shape_of"]
