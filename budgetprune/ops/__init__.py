"""Token ops for any vision-language model: torch in, torch out, nothing else of this package.

Dimensions: B batch, N tokens, K kept, M merged, E entries of lists, C channels, H heads, D head size, Q queries.
"""

from .attention_received import attention_received
from .fastv_select import fastv_select
from .gated_attention import gated_attention
from .gather_tokens import Gathered, gather_tokens
from .greedy_select import cosine_similarity_matrix, greedy_select
from .gumbel_topk import gumbel_topk
from .merge_tokens import merge_tokens
from .select_topk import select_topk

__all__ = ["Gathered", "attention_received", "cosine_similarity_matrix", "fastv_select", "gated_attention",
           "gather_tokens", "greedy_select", "gumbel_topk", "merge_tokens", "select_topk"]
