"""Two methods that work together: one before the language model, one inside it."""

from collections.abc import Sequence
from inspect import signature

from ..checked import shown
from .base import Selector, find, made


def methods_of(method, options: dict, find=find) -> tuple[Selector, Selector | None]:
    """The method, or the two, that prune() was given: by name, as a Selector, or as a pair of names or of Selectors.

    find: gives the class of a name. Of two names each gets the options that it has. ValueError: options beside a
    Selector, options of neither or of both, or two methods that do not follow each other. TypeError: anything else than
    names and Selectors.
    """
    if isinstance(method, str) and "+" not in method:
        return made(find(method), **options), None
    if isinstance(method, Selector):
        _no_options(options)
        return method, None
    pair = method.split("+") if isinstance(method, str) else method
    kinds = {kind for kind in (str, Selector) if isinstance(pair, Sequence) and all(isinstance(x, kind) for x in pair)}
    if len(kinds) != 1:
        raise TypeError("method must be a name, a Selector, or a pair of two names or of two Selectors, got "
                        f"{shown(method)}")
    if kinds == {str}:
        classes = [find(name) for name in pair]
        _two(classes)
        pair = _built(classes, options)
    else:
        _no_options(options)
        _two(pair)
    return tuple(pair)


def _two(methods):
    """Raises ValueError unless these, Selectors or their classes, are two methods of which one follows the other."""
    names, places = "+".join(method.name for method in methods), [method.place for method in methods]
    if len(methods) != 2:
        raise ValueError(f"method must be one name, or two, got {len(methods)}: {names}")
    if places != ["vision", "llm"] or methods[0].name == "none" or methods[1].trainable:
        raise ValueError("method must be one name, or two: one that prunes before the language model and one inside "
                         f"it, in this order, got {names}")


def _built(classes, options) -> list[Selector]:
    known = [set(signature(cls).parameters) for cls in classes]
    for option in options:
        takers = [cls for cls, own in zip(classes, known) if option in own]
        if len(takers) != 1:
            names = "+".join(cls.name for cls in classes)
            raise ValueError(f"{option} must be an option of one method in {names!r}, it is one of {len(takers)}; a "
                             "pair of Selectors says which is meant")
    return [made(cls, **{option: value for option, value in options.items() if option in own})
            for cls, own in zip(classes, known)]


def _no_options(options):
    if options:
        raise ValueError(f"options go to a method given by name, got {sorted(options)} beside a Selector")


def pair_of(keep) -> tuple:
    """The budgets of two methods."""
    if isinstance(keep, str) or not isinstance(keep, Sequence) or len(keep) != 2:
        raise ValueError(f"keep must be a pair for two methods, one budget each, got {keep!r}")
    return tuple(keep)
