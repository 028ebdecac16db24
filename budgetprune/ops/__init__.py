"""Token ops for any vision-language model: torch in, torch out, nothing else of this package.

Dimensions: B batch, N tokens, K kept, C channels, H heads, D head size, Q queries.
"""

from .select_topk import select_topk

__all__ = ["select_topk"]
