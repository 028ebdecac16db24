"""The shapes that are timed, named after the models they come from. No shape is typed in a bench file.

    @pytest.mark.parametrize("shape", names("llava15", "qwen25vl"))
    def bench_select_topk(bench, provider, shape, device):
        s = SHAPES[shape]
        scores = torch.randn(s.B, s.N, device=device)

B is the batch, N the image tokens of one row, K how many are kept, T the text tokens around them, C the width of the
tokens a selector sees, H query heads, G key heads (H = G without grouping), D the head size, L the decoder layers.
"""

from dataclasses import dataclass, replace

import pytest


@dataclass(frozen=True)
class Shape:
    B: int
    N: int
    K: int
    T: int
    C: int
    H: int
    G: int
    D: int
    L: int
    source: str

    def batch(self, rows):
        """The same model with another batch."""
        return replace(self, B=rows)


LLAVA15 = Shape(64, 576, 192, 64, 4096, 32, 32, 128, 32, "LLaVA-1.5 7B: CLIP ViT-L/14 at 336, 24x24 patches")
CLIP = replace(LLAVA15, C=1024, H=16, G=16, D=64, L=24, source="CLIP ViT-L/14 at 336, the tower of LLaVA-1.5")
NEXT = Shape(8, 2880, 640, 64, 4096, 32, 32, 128, 32, "LLaVA-NeXT 7B: five tiles of 576")
QWEN = Shape(8, 4096, 1024, 64, 3584, 28, 4, 128, 28, "Qwen2.5-VL 7B: 1792x1792 pixels, 2x2 merged patches")
VIDEO = Shape(4, 16384, 2048, 64, 3584, 28, 4, 128, 28, "Qwen2.5-VL 7B: a long clip at its token limit")

SHAPES = {
    "digits": Shape(64, 64, 12, 20, 96, 4, 4, 24, 4, "the embedded digits task: 64x64 canvas, 8x8 patches"),
    "llava15": LLAVA15,
    "llava15_b1": LLAVA15.batch(1),
    "llava15_b8": LLAVA15.batch(8),
    "llava15_b64": LLAVA15,
    "llava15_b256": LLAVA15.batch(256),
    "llava15_k64": replace(LLAVA15, K=64),
    "llava15_k288": replace(LLAVA15, K=288),
    "clip_b8": CLIP.batch(8),
    "clip_b64": CLIP,
    "llava_next": NEXT,
    "llava_next_b1": NEXT.batch(1),
    "onevision": Shape(4, 7290, 1458, 64, 3584, 28, 4, 128, 28, "LLaVA-OneVision 7B: ten SigLIP views of 729"),
    "qwen25vl": QWEN,
    "qwen25vl_b1": QWEN.batch(1),
    "video": VIDEO,
    "video_b64": VIDEO.batch(64),
}

# Those that only a GPU is timed at: on two cores they take minutes or more memory than there is.
LARGE = {"llava15_b8", "llava15_b64", "llava15_b256", "llava15_k64", "llava15_k288", "clip_b64", "llava_next_b1",
         "qwen25vl_b1", "video_b64"}


def names(*wanted):
    """These shapes, or all of them; an unknown name is an error at collection, not a skipped row of the table."""
    unknown = sorted(set(wanted) - set(SHAPES))
    if unknown:
        raise ValueError(f"shape must be one of {sorted(SHAPES)}, got {unknown}")
    return list(wanted or SHAPES)


def named_large(shape, device, also=()):
    """Skips a shape that is too large for the CPU."""
    if device == "cpu" and shape in LARGE.union(also):
        pytest.skip(f"{shape} is timed on a GPU only")
