"""Selection methods, one paper per file. A new method is one new file here."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Selector, TokenView, available, build

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Selector", "TokenView", "available", "build"]
