"""The cost shape of a model that the user names."""

from pathlib import Path

from ..cost import VlmShape, known


def shape_of(name: str) -> VlmShape:
    """The shape of a folder with a config.json, else of a known model; ValueError lists the known names."""
    if not (Path(name) / "config.json").is_file():
        return known(name)
    from transformers import AutoConfig

    return VlmShape.from_config(AutoConfig.from_pretrained(name, local_files_only=True))
