"""Projectors that compress an image to fewer tokens, one per file. A new one is one new file here."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Compressor, Site, available, find, priced

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Compressor", "Site", "available", "find", "priced"]
