"""Lists as they are written on the command line."""


def listed(name: str, text: str) -> list[str]:
    """The entries of a list of the command line, at least one."""
    found = text.replace(",", " ").split()
    if not found:
        raise ValueError(f"{name} must name at least one, got {text!r}")
    return found


def whole(name: str, text: str) -> int:
    """A count out of a list of the command line."""
    if not text.isdecimal():
        raise ValueError(f"{name} must hold whole numbers, got {text!r}")
    return int(text)
