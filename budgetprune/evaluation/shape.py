"""The cost shape of a model that the user names."""

import json
from pathlib import Path

from ..cost import VlmShape, known


def shape_of(name: str) -> VlmShape:
    """The shape of a folder with a config.json, else of a known model; ValueError lists the known names."""
    path = Path(name) / "config.json"
    if not path.is_file():
        return known(name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except ValueError:  # of no class of transformers; its JSON may still say all that is needed
        config = json.loads(path.read_text())
    return VlmShape.from_config(config)
