"""A model of any supported family, with its processor, by the name of a folder or of a repository."""

import re
from pathlib import Path

import torch

from ..models.base import family_of


def load_model(name: str, dtype: torch.dtype | None = None):
    """(model, processor), on the CPU; without `dtype` float32 where there is no GPU, else as it was saved.

    Raises:
        FileNotFoundError: neither a folder with a model nor a repository that can be reached.
        TypeError, ValueError: a model of no supported family, or one that cannot be pruned.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    local = Path(name).is_dir()
    if local and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"model must be a folder with a config.json, got {name}")
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"model must be a folder or a name on the Hugging Face hub (owner/name), got {name}")
    if dtype is None:
        dtype = "auto" if torch.cuda.is_available() else torch.float32  # half precision is slow on most processors
    try:
        processor = AutoProcessor.from_pretrained(name, local_files_only=local)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, local_files_only=local)
    except OSError as error:
        raise FileNotFoundError(f"model {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    family_of(model)
    processor.tokenizer.padding_side = "left"  # answers are written behind the prompt
    return model.eval(), processor
