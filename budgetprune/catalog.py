"""All methods that prune() takes by name: those that select tokens, and those that compress the image to fewer."""

from . import compress, selectors
from .selectors import Selector
from .selectors.base import find as find_selector
from .selectors.base import made


def available() -> list[str]:
    """The names of all methods, sorted."""
    return sorted([*selectors.available(), *compress.available()])


def find(name: str) -> type[Selector]:
    """The class of a method. ValueError: an unknown name; the known are listed. TypeError: no name."""
    if isinstance(name, str) and name in compress.available():
        return compress.find(name)
    try:
        return find_selector(name)
    except ValueError as error:
        raise ValueError(f"{error}; and those that compress: {', '.join(compress.available())}") from None


def build(name: str, /, **options) -> Selector:
    """Makes a method by name; errors are those of `find`, and ValueError lists the options that it takes."""
    return made(find(name), **options)
