"""A configuration by its fields, whether it is a JSON object or an object of transformers."""

from collections.abc import Mapping

_NEEDED = object()


class Fields:
    """The fields of `config`; errors call it `name`."""

    def __init__(self, config, name: str):
        self.config, self.name = config, name

    def has(self, name: str) -> bool:
        return self.get(name, default=None) is not None

    def get(self, *names: str, default=_NEEDED):
        """The first of `names` that is there and not None; ValueError where none is and there is no default."""
        for name in names:
            value = (self.config.get(name) if isinstance(self.config, Mapping) else getattr(self.config, name, None))
            if value is not None:
                return value
        if default is _NEEDED:
            raise ValueError(f"{self.name} must have {' or '.join(names)}, it has none; a config.json may leave out "
                             "what is its class' default, which transformers' AutoConfig fills in")
        return default

    def count(self, *names: str, default=_NEEDED) -> int:
        """A positive int; a list of equal ones, as of a square's sides, counts as one."""
        value = self.get(*names, default=default)
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:
            value = value[0]
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.name}.{names[0]} must be a positive int, got {value!r}")
        return value

    def part(self, name: str) -> "Fields":
        """A configuration inside this one."""
        return Fields(self.get(name), f"{self.name}.{name}")

    def refuse(self, fields: dict[str, str]) -> None:
        """ValueError where the configuration has one of `fields`, {name: what it means}."""
        for name, meaning in fields.items():
            if self.get(name, default=None):
                raise ValueError(f"{self.name}.{name} means {meaning}, which is not counted here")
