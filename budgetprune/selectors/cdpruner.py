"""CDPruner: a determinantal point process over tokens, conditioned on the question."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checked import flag
from ..ops import cosine_similarity_matrix, greedy_select
from .base import Selector, TokenView, ragged


@dataclass(frozen=True)
class CDPruner(Selector):
    """Greedy MAP of a DPP with L = diag(r) S diag(r), S the cosines of the tokens, r their relevance to the question.

    Zhang et al., 2025, "CDPruner"; the kernel and the greedy choice are the authors' code. S is over projected tokens;
    what stays keeps its order. r[n] = mean over text tokens t of cos(x_n, t), scaled to (0, 1] over the image.

    Departures: x_n and t are projected tokens and the language model's text embeddings, which is ours; published:
    patch and text embeddings of the whole CLIP, whose text tower these models have not. r rises with the cosine;
    published: it falls with CLIP's, which negate=True does with this one. r is scaled over its own image (published:
    over the whole batch); it is 1 where all tokens score the same or the prompt has no text, which leaves a plain
    DPP. A token of zeros has cosine 0 with all.
    """

    name = "cdpruner"
    needs: ClassVar = frozenset({"text"})
    after_projector: ClassVar[bool] = True

    negate: bool = False

    def __post_init__(self):
        flag("negate", self.negate)

    def plan(self, view: TokenView, keep):
        keep = self.require(keep)
        cosine = relevance(view.tokens, view.need("text"), view.text_valid)
        scaled = minmax(-cosine if self.negate else cosine)
        same = keep[0] if len(set(keep)) == 1 else keep
        similarity = cosine_similarity_matrix(view.tokens)
        return ragged(greedy_select(similarity, same, method="dpp", relevance=scaled), keep)

    def flops(self, tokens, width, keep):
        factor = tokens * keep * (keep - 1) // 2  # step t against the t - 1 rows before it
        return 2 * (tokens * tokens * width + tokens * width + factor)  # the cosines, the relevance, the DPP


def relevance(tokens: Tensor, text: Tensor, text_valid: Tensor | None) -> Tensor:
    """[B, N] float32, mean over the text tokens that exist of their cosine with each token; 0 without any."""
    if text.shape[2] != tokens.shape[2]:
        raise ValueError(f"text must be as wide as the projected tokens, C={tokens.shape[2]}, got {text.shape[2]}")
    unit = normalize(text.float(), dim=-1)
    exists = text.new_ones(text.shape[:2], dtype=torch.bool) if text_valid is None else text_valid
    # The mean of the cosines is one product with the mean of the unit vectors.
    mean = unit.masked_fill(~exists[..., None], 0).sum(1) / exists.sum(1, keepdim=True).clamp_min(1)
    return (normalize(tokens.float(), dim=-1) @ mean[..., None])[..., 0]


def minmax(scores: Tensor) -> Tensor:
    """[B, N] from nearly 0 to 1, each row by its own least and largest; 1 where these are the same.

    The published code adds 1e-6, so that the least relevant token is not as good as absent.
    """
    least, largest = scores.aminmax(dim=1, keepdim=True)
    return torch.where(largest > least, (scores - least + 1e-6) / (largest - least), 1.0)
