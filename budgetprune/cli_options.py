"""What the command line says of a method's options."""

import json
from inspect import signature


def options_of(method: str, texts: list[str], common: dict[str, tuple]) -> dict:
    """The options of a method, of "key=value" with values as JSON has them, and of flags of their own.

    common: {option: (value, default)} of those flags; a method that has no such option does without the default, and
    refuses another value by itself. ValueError: another form, or an option twice; an unknown method.
    """
    from .catalog import find

    own = signature(find(method)).parameters
    found = {name: value for name, (value, default) in common.items() if name in own or value != default}
    given = set()
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ValueError(f"option must be key=value with a key out of {', '.join(own)}, got {text!r}")
        if key in given:
            raise ValueError(f"option {key} must be given once, got it twice")
        given.add(key)
        found[key] = _value(value)
    return found


def _value(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a word needs no quotes
