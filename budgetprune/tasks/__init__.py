"""Tasks: images, questions, and which answers are right. A new task is one new file in this room.

Dimensions: B images, N patches of one image, Q questions about one image.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import ImageFile, Sample, Task, available, build, find, parse_options

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["ImageFile", "Sample", "Task", "available", "build", "find", "parse_options"]
