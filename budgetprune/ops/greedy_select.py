"""Tokens that differ from one another, chosen one at a time: the farthest next, or the most likely set of a DPP."""

import torch
from torch import Tensor

from ._checks import check_float, check_keep, check_like
from ._native import provide

METHODS = ("max_min", "dpp")
NEGLIGIBLE = {torch.float32: 2.0**-18, torch.float64: 2.0**-47}  # of what a token's d^2 began with: counts as 0


def _max_min_order(similarity: Tensor, steps: int) -> Tensor:
    """[B, steps] positions in the order of their choice."""
    distance = 1 - similarity
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(itself, torch.inf).amin(1)
    chosen, taken = [], torch.zeros_like(nearest, dtype=torch.bool)
    for step in range(steps):
        chosen.append(_first_open(nearest, taken))
        taken = taken.scatter(1, chosen[-1][:, None], True)
        row = distance[torch.arange(len(distance), device=distance.device), chosen[-1]]
        nearest = row if step == 0 else torch.minimum(nearest, row)
    return torch.stack(chosen, 1)


def _first_open(ranks: Tensor, taken: Tensor) -> Tensor:
    """[B] of the tokens not taken, the first of the largest rank; NaN ranks first. An infinite rank is a rank too."""
    nan = ranks.isnan() & ~taken
    best = torch.where(taken | ranks.isnan(), -torch.inf, ranks).amax(1, keepdim=True)
    equal = torch.where(nan.any(1, keepdim=True), nan, (ranks == best) & ~taken)
    return equal.int().argmax(1)


def _dpp_order(similarity: Tensor, relevance: Tensor | None, steps: int) -> Tensor:
    """[B, steps] positions in the order of their choice, each sum rounded as the kernels round it."""
    batch, tokens, _ = similarity.shape
    relevance = similarity.new_ones(batch, tokens) if relevance is None else relevance
    own = relevance * similarity.diagonal(dim1=1, dim2=2) * relevance
    limit = torch.where(own > 0, own * NEGLIGIBLE[own.dtype], 0)
    variance = torch.where(own <= limit, 0, own)
    taken = torch.zeros_like(own, dtype=torch.bool)
    sample = torch.arange(batch, device=own.device)
    factor, rows = own.new_zeros(-(-steps // 4) * 4, batch, tokens), torch.zeros_like(sample)
    order = []
    for _ in range(steps):
        chosen = _first_open(variance, taken)
        order.append(chosen)
        taken = taken.scatter(1, chosen[:, None], True)
        best = variance[sample, chosen][:, None]
        products = factor * factor[:, sample, chosen][..., None]
        total = torch.zeros_like(own)
        for group in products.split(4):
            total = total + ((group[0] + group[1]) + (group[2] + group[3]))
        entry = relevance[sample, chosen][:, None] * similarity[sample, chosen] * relevance
        entry = (entry - total) / best.sqrt()
        adds = best > 0
        left = variance - entry * entry
        variance = torch.where(adds, torch.where(left <= limit, 0, left), variance)
        row = torch.where(adds, entry, factor[rows, sample])
        factor[rows, sample] = row  # a token that adds nothing to the span leaves no row
        rows = rows + adds[:, 0]
    return torch.stack(order, 1)


def greedy_select_reference(
    similarity: Tensor, relevance: Tensor | None, keep: Tensor | None, max_keep: int, method: str
) -> Tensor:
    batch, tokens, _ = similarity.shape
    if batch == 0 or max_keep == 0:
        return similarity.new_empty((batch, max_keep), dtype=torch.int32)
    order = _dpp_order(similarity, relevance, max_keep) if method == "dpp" else _max_min_order(similarity, max_keep)
    if keep is not None:
        order = order.masked_fill(torch.arange(max_keep, device=order.device) >= keep[:, None], tokens)
    kept = order.sort(dim=1).values
    return kept.masked_fill(kept == tokens, -1).int()


_op = provide("greedy_select(Tensor similarity, Tensor? relevance, Tensor? keep, SymInt max_keep, str method)"
              " -> Tensor", greedy_select_reference)


@torch.library.register_fake("budgetprune::greedy_select")
def _(similarity, relevance, keep, max_keep, method):
    return similarity.new_empty((similarity.shape[0], max_keep), dtype=torch.int32)


@torch.library.register_vmap("budgetprune::greedy_select")
def _(info, dims, similarity, relevance, keep, max_keep, method):
    def rows(tensor, dim):
        if tensor is None:
            return None
        mapped = tensor.movedim(dim, 0) if dim is not None else tensor.expand(info.batch_size, *tensor.shape)
        return mapped.flatten(0, 1)

    batch = similarity.shape[1 if dims[0] == 0 else 0]
    arguments = (rows(tensor, dim) for tensor, dim in zip((similarity, relevance, keep), dims))
    return _op(*arguments, max_keep, method).unflatten(0, (info.batch_size, batch)), 0


def cosine_similarity_matrix(x: Tensor) -> Tensor:
    """[B, N, N] cosines of all pairs of the tokens x [B, N, C]: what DivPrune and CDPruner give to greedy_select.

    float64 stays, other float types become float32 before the product, which keeps near duplicates apart. A token of
    zeros has cosine 0 with all.
    """
    check_float("x", x, "B N C")
    unit = torch.nn.functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def greedy_select(
    similarity: Tensor,
    keep: int | list[int] | Tensor,
    *,
    method: str = "max_min",
    relevance: Tensor | None = None,
    max_keep: int | None = None,
) -> Tensor:
    """Positions of `keep` tokens of each sample that differ from one another, chosen one at a time.

    method "max_min" (DivPrune): the distance of two tokens is 1 - similarity. First comes the token whose nearest
    other token is farthest, then always the token whose distance to those chosen is largest.
    method "dpp" (CDPruner): greedy MAP of a determinantal point process with L = diag(r) S diag(r), S the similarity
    and r the relevance. Always the token that raises det L of the chosen most, the one with the largest d^2 = L_ii -
    |c_i|^2; c are the rows of an incremental Cholesky factor. A d^2 of at most 2^-18 L_ii (float64: 2^-47) is below
    rounding and counts as 0, so that once the chosen tokens span all others the rest is a tie.

    Equal distances or d^2: the lower position wins. NaN ranks first, as in the argmax of the published loops; a token
    whose own d^2 is NaN is taken and changes no other. Whatever `similarity` holds, exactly K different tokens are
    kept, and the CPU and the GPU keep the same, bit for bit.

    Args:
        similarity: [B, N, N] float, row i what token i, once chosen, is to every token; symmetric in both papers, and
            positive semidefinite for "dpp". It is one product of matrices that a library does best, see
            cosine_similarity_matrix. float16 and bfloat16 are converted to float32.
        keep: K, tokens kept: an int for all samples, or one per sample as a sequence or an int32 Tensor [B].
        method: "max_min" or "dpp".
        relevance: r [B, N] for "dpp", None: ones. A token of relevance 0 is taken only when nothing else is left.
        max_keep: Kmax when `keep` is a Tensor; naming it avoids reading `keep` back from a GPU.

    Returns:
        [B, Kmax] int32, ascending (both papers sort), padded with -1, on the device of `similarity`.

    Raises:
        ValueError: a shape, a device, `method` or a count does not fit, or `relevance` without "dpp".
        TypeError: another dtype.
        RuntimeError: a count inside a `keep` Tensor is outside [0, Kmax] (checked on the CPU; clamped on a GPU).

    No gradient. Reads the whole matrix once for the first token of "max_min", its diagonal for "dpp", then one row a
    token; "dpp" holds c, [B, Kmax, N]. On a GPU the loop is one launch, a block per sample; "dpp" with N >= 1024 and
    N * Kmax > 2^18 takes a launch per token, with many blocks per sample.
    Sources: Alvar et al., DivPrune, CVPR 2025; Zhang et al., CDPruner, 2025; Chen et al., Fast Greedy MAP Inference for
    Determinantal Point Process, NeurIPS 2018, algorithm 1. Departures: every sample is pruned by its own tokens
    (DivPrune: the first sample's); a token is never taken twice; a d^2 below rounding counts as 0, where the published
    DPP loops divide by the root of a rounding error; relevance is taken as it comes (CDPruner scales it over the whole
    batch).
    """
    check_float("similarity", similarity, "B N N")
    if similarity.shape[1] != similarity.shape[2]:
        raise ValueError(f"similarity must be [B, N, N], got shape {list(similarity.shape)}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    exact = similarity.dtype if similarity.dtype == torch.float64 else torch.float32
    if relevance is not None:
        if method != "dpp":
            raise ValueError(f'relevance must be None unless method is "dpp", got method {method!r}')
        check_float("relevance", relevance, "B N")
        check_like("relevance", relevance, similarity.shape[:2], (relevance.dtype,), similarity.device)
        relevance = relevance.detach().to(exact)
    keep, max_keep = check_keep(keep, *similarity.shape[:2], similarity.device, max_keep)
    return _op(similarity.detach().to(exact), relevance, keep, max_keep, method)
