"""Arguments as their users give them: each is named in its error, with what was wanted and what came.

What is returned is plain, so that numbers of numpy can be saved as JSON.
"""

from math import inf, isfinite
from numbers import Integral, Real
from reprlib import repr as shown  # cut off: what came may be a tensor

LARGEST_SEED = 2**63 - 1  # it becomes half of a Philox key, int64 [2]


def integer(name: str, value, least: int = 0, most: float = inf) -> int:
    """TypeError: no int; a bool is none. ValueError: not in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    _within(name, value, least, most)
    return int(value)


def number(name: str, value, least: float = -inf, most: float = inf) -> float:
    """TypeError: neither int nor float; a bool is none. ValueError: not finite, or not in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    _within(name, value, least, most)
    return float(value)


def flag(name: str, value) -> bool:
    """TypeError: no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def one_of(name: str, value, known) -> str:
    """TypeError: no string. ValueError: none of `known`."""
    wanted = f"{name} must be one of {', '.join(map(repr, known))}"
    if not isinstance(value, str):
        raise TypeError(f"{wanted}, got {shown(value)}")
    if value not in known:
        raise ValueError(f"{wanted}, got {value!r}")
    return value


def _within(name, value, least, most):
    if not least <= value <= most:
        wanted = f"at least {least}" if most == inf else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {wanted}, got {value}")
