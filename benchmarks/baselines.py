"""Baselines that several benchmarks share, and that not every machine has."""

import functools

import pytest
import torch


@functools.cache
def compiled(call):
    """torch.compile of an eager form, fused as far as inductor can."""
    return torch.compile(call, dynamic=False)  # every shape is compiled for itself


GPU_COMPILED = ("llava15", "llava15_b8", "llava15_b64", "clip_b8", "llava_next_b1", "video_b64")


def skip_compiled(provider, shape, device, timed=("llava15",)):
    """Compiling takes seconds a shape: a few are enough, on the CPU those in `timed`."""
    chosen = timed if device == "cpu" else GPU_COMPILED
    if provider == "torch.compile" and shape not in chosen:
        pytest.skip(f"torch.compile is timed at {', '.join(chosen)} only")


def flashinfer_topk(device):
    """FlashInfer's top_k(scores, k), or a skip where it is not installed."""
    if device == "cpu":
        pytest.skip("FlashInfer runs on a GPU only")
    return pytest.importorskip("flashinfer", reason="FlashInfer is not installed").top_k


def sdpa(q, k, v, causal=True):
    grouped = q.shape[1] != k.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


@functools.cache
def _flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_gated(q, k, v, gate):
    """FlexAttention with log gate added to the scores: a gated forward, but no gradient of a gate at 0."""
    bias, last = gate.clamp_min(1e-30).log(), k.shape[2] - q.shape[2]

    def score(s, b, h, i, j):
        return torch.where(j <= i + last, s + bias[b, j], -float("inf"))

    return _flex()(q, k, v, score_mod=score, enable_gqa=q.shape[1] != k.shape[1])
