"""Long work in one folder, over several calls: which settings it is of, and how long was worked on it."""

import json
import time
from pathlib import Path

from ..models.adapter import replace_file

FILE_NAME = "work.json"
EVERY = 10.0  # seconds of which a kill may lose the count


class Work:
    """Counts the wall seconds of this call and adds them to those of earlier ones, interrupted or not.

    with Work(out, settings) as work: ... work.tick() now and then ... work.seconds

    settings: as JSON has them, what all calls in one folder share. ValueError: `out` holds work of other settings.
    """

    def __init__(self, out, settings: dict):
        self.path, self.settings = Path(out) / FILE_NAME, json.loads(json.dumps(settings))
        self.earlier = 0.0
        if self.path.is_file():
            before = json.loads(self.path.read_text())
            for name, value in self.settings.items():
                if before["settings"].get(name) != value:
                    raise ValueError(f"{name} must be {_text(before['settings'].get(name))}, which the run in {out} "
                                     f"has, got {_text(value)}; choose another folder with out for another run")
            self.earlier = before["seconds"]
        self.began = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of all calls so far."""
        return self.earlier + time.monotonic() - self.began

    def tick(self) -> None:
        """Saves, where the last time is a while ago."""
        if time.monotonic() - self.saved > EVERY:
            self.save()

    def save(self) -> None:
        self.saved = time.monotonic()
        text = json.dumps({"settings": self.settings, "seconds": round(self.seconds, 1)}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, lambda path: path.write_text(text + "\n"))

    def __enter__(self):
        self.save()
        return self

    def __exit__(self, *error):
        self.save()


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
