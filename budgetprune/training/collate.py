"""Rows of any length, with any images, as one batch of any family."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .chat import IGNORED

FILL = {"labels": IGNORED}


def collate(rows: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Right-padded [B, L] of what is [1, L] in each row, like its input_ids; all else is of images, one after another.

    Of images that differ in crops (LLaVA-NeXT's [1, crops, 3, H, W]) the fewer are filled up with zeros, as the model's
    own processor does. pad: id of the padding token.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in names:
        if all(name in row and row[name].shape == row["input_ids"].shape for row in rows):
            fill = pad if name == "input_ids" else FILL.get(name, 0)
            batch[name] = torch.cat([F.pad(row[name], (0, longest - row[name].shape[1]), value=fill) for row in rows])
        else:  # rows of text have none
            batch[name] = _joined([row[name] for row in rows if name in row])
    return batch


def _joined(parts: list[Tensor]) -> Tensor:
    widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    filled = []
    for part in parts:
        missing = [wide - own for wide, own in zip(widest, part.shape[1:])]
        filled.append(F.pad(part, [n for own in reversed(missing) for n in (0, own)]) if any(missing) else part)
    return torch.cat(filled)
