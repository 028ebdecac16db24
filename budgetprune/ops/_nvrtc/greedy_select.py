"""greedy_select through CuPy: the decisions of greedy_select.cpp and greedy_select.cu."""

import torch

from .kernel import ELEMENT, Kernel, ceil_div, check, structure

ELEMENTS = ("float", "double")
MOST_SHARED = 80 * 1024  # what a block holds beside its static shared memory
DPP_TILE = 64  # columns of a block in a launch per token

turns_of = structure("DppTurns<KeyOf<T>::Key>", keys="Key*", at="i32*", rows="i32*", samples="i32", tiles="i32")

NEAREST = Kernel("greedy_select.cuh", "nearest_token_kernel", "T*, i32, u32, KeyOf<T>::Key*", ELEMENTS)
MAX_MIN = Kernel("greedy_select.cuh", "max_min_kernel", "T*, KeyOf<T>::Key*, i32*, i32, i32, KeyOf<T>::Key*, i32*",
                 ELEMENTS)
DPP = Kernel("greedy_select_dpp.cuh", "dpp_kernel",
             "T*, T*, i32*, i32, i32, KeyOf<T>::Float*, KeyOf<T>::Float*, i32*", ELEMENTS)
BEGIN = Kernel("greedy_select_dpp.cuh", "dpp_begin_kernel",
               "T*, T*, i32, KeyOf<T>::Float*, DppTurns<KeyOf<T>::Key>", ELEMENTS)
STEP = Kernel("greedy_select_dpp.cuh", "dpp_step_kernel",
              "T*, T*, i32*, i32, i32, i32, KeyOf<T>::Float*, KeyOf<T>::Float*, DppTurns<KeyOf<T>::Key>", ELEMENTS)
END = Kernel("greedy_select_dpp.cuh", "dpp_end_kernel", "T*, i32*, i32, i32, i32*", ELEMENTS)


def _check(similarity, relevance, keep, max_keep, method):
    check(method in ("max_min", "dpp"), f"greedy_select: method must be max_min or dpp, got {method}")
    check(similarity.dim() == 3 and similarity.shape[1] == similarity.shape[2],
          "greedy_select: similarity must be [B, N, N]")
    check(similarity.dtype in (torch.float32, torch.float64), "greedy_select: similarity must be float32 or float64")
    samples, n, _ = similarity.shape
    check(n < 2**27, f"greedy_select: N must be below 2^27, got {n}")
    check(0 <= max_keep <= n, f"greedy_select: max_keep must be in [0, {n}], got {max_keep}")
    check(relevance is None or (method == "dpp" and relevance.dtype == similarity.dtype
                                and tuple(relevance.shape) == (samples, n)),
          "greedy_select: relevance is for dpp, [B, N] of similarity's dtype")
    check(keep is None or (keep.dtype == torch.int32 and keep.numel() == samples),
          "greedy_select: keep must be int32 [B]")
    check(samples * ceil_div(n, 32) < 2**31, "greedy_select: B * N / 32 must be below 2^31")


def _in_turns(n, kmax):
    """dpp: whether a launch per token is less than what one multiprocessor needs to read the rows of the factor."""
    return n >= 1024 and n * kmax > 2**18


def _block(threads):
    return min(1024, ceil_div(threads, 32) * 32)


def greedy_select(similarity, relevance, keep, max_keep, method):
    _check(similarity, relevance, keep, max_keep, method)
    samples, n, _ = similarity.shape
    kept = similarity.new_empty((samples, max_keep), dtype=torch.int32)
    if kept.numel() == 0:
        return kept
    similarity = similarity.contiguous()
    relevance, keep = (None if t is None else t.contiguous() for t in (relevance, keep))
    (_dpp if method == "dpp" else _max_min)(similarity, relevance, keep, kept)
    return kept


def _max_min(similarity, relevance, keep, kept):
    (samples, n, _), kmax, T, device = similarity.shape, kept.shape[1], (ELEMENT[similarity.dtype],), similarity.device
    nearest = similarity.new_empty((samples, n))
    state = n * similarity.element_size()
    scratch = similarity.new_empty((samples, n)) if state > MOST_SHARED else None
    tiles = ceil_div(n, 32)
    NEAREST.launch(T, device, samples * tiles, 256, (similarity, n, tiles, nearest))
    MAX_MIN.launch(T, device, samples, _block(ceil_div(n, 4)), (similarity, nearest, keep, n, kmax, scratch, kept),
                   shared=state if scratch is None else 0)


def _dpp(similarity, relevance, keep, kept):
    (samples, n, _), kmax, T, device = similarity.shape, kept.shape[1], (ELEMENT[similarity.dtype],), similarity.device
    factor = similarity.new_empty((samples, kmax, n))
    state = 2 * n * similarity.element_size()
    in_turns = _in_turns(n, kmax)
    scratch = similarity.new_empty((samples, 2, n)) if in_turns or state > MOST_SHARED else None
    if not in_turns:
        DPP.launch(T, device, samples, _block(n), (similarity, relevance, keep, n, kmax, factor, scratch, kept),
                   shared=state if scratch is None else 0)
        return
    tiles = ceil_div(n, DPP_TILE)
    keys, at = similarity.new_empty((2, samples, tiles)), kept.new_empty((2, samples, tiles))
    turns = turns_of(keys=keys, at=at, rows=(rows := kept.new_empty((2, samples))), samples=samples, tiles=tiles)
    BEGIN.launch(T, device, samples * tiles, DPP_TILE, (similarity, relevance, n, scratch, turns))
    for t in range(kmax):
        STEP.launch(T, device, samples * tiles, DPP_TILE,
                    (similarity, relevance, keep, n, kmax, t, factor, scratch, turns))
    END.launch(T, device, samples, 256, (scratch, keep, n, kmax, kept))
    del keys, at, rows  # the struct holds their addresses only
