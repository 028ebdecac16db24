"""Token ops for any vision-language model: torch in, torch out, nothing else of this package.

Dimensions: B batch, N tokens, K kept, C channels, H heads, D head size, Q queries.
"""

from .attention_received import attention_received
from .fastv_select import fastv_select
from .gated_attention import gated_attention
from .gather_tokens import Gathered, gather_tokens
from .gumbel_topk import gumbel_topk
from .select_topk import select_topk

__all__ = ["Gathered", "attention_received", "fastv_select", "gated_attention", "gather_tokens", "gumbel_topk",
           "select_topk"]
