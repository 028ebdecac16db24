"""Two methods that work together: one before the language model, one inside it."""

from collections.abc import Sequence
from inspect import signature

from .base import Selector, build, find


def methods_of(method, options: dict) -> tuple[Selector, Selector | None]:
    """The method, or the two, that prune() was given by name, as a Selector, or as a pair of Selectors.

    Of two names each gets the options that it has. ValueError: options beside a Selector, options of neither or of
    both, or two methods that do not follow each other.
    """
    if isinstance(method, str) and "+" not in method:
        return build(method, **options), None
    if isinstance(method, str):
        names = method.split("+")
        known = [set(signature(find(name)).parameters) for name in names]
        for option in options:
            takers = [name for name, own in zip(names, known) if option in own]
            if len(takers) != 1:
                raise ValueError(f"{option} must be an option of one method in {method!r}, it is one of "
                                 f"{len(takers)}; a pair of Selectors says which is meant")
        method = tuple(build(name, **{option: value for option, value in options.items() if option in own})
                       for name, own in zip(names, known))
    elif options:
        raise ValueError(f"options go to a method given by name, got {sorted(options)} beside a Selector")
    if isinstance(method, Selector):
        return method, None
    places = [selector.place for selector in method]
    if places != ["vision", "llm"] or method[0].name == "none" or method[1].trainable:
        raise ValueError("method must be one name, or two: one that prunes before the language model and one inside "
                         f"it, in this order, got {'+'.join(selector.name for selector in method)}")
    return tuple(method)


def pair_of(keep) -> tuple:
    """The budgets of two methods."""
    if isinstance(keep, str) or not isinstance(keep, Sequence) or len(keep) != 2:
        raise ValueError(f"keep must be a pair for two methods, one budget each, got {keep!r}")
    return tuple(keep)
