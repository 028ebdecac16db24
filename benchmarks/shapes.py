"""The shapes that are timed, named after the models they come from. No shape is typed in a bench file.

    @pytest.mark.parametrize("shape", names("llava15", "qwen25vl"))
    def bench_select_topk(bench, provider, shape, device):
        s = SHAPES[shape]
        scores = torch.randn(s.B, s.N, device=device)

B is the batch, N the image tokens of one row, K how many are kept, T the text tokens around them, C the width of the
tokens a selector sees, H query heads, G key heads (H = G without grouping), D the head size, L the decoder layers.
"""

from dataclasses import dataclass, replace


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


SHAPES = {
    "digits": Shape(64, 64, 12, 20, 96, 4, 4, 24, 4, "the embedded digits task: 64x64 canvas, 8x8 patches"),
    "llava15": Shape(64, 576, 192, 64, 4096, 32, 32, 128, 32, "LLaVA-1.5 7B: CLIP ViT-L/14 at 336, 24x24 patches"),
    "llava15_b1": Shape(1, 576, 192, 64, 4096, 32, 32, 128, 32, "LLaVA-1.5 7B, one image"),
    "llava_next": Shape(8, 2880, 640, 64, 4096, 32, 32, 128, 32, "LLaVA-NeXT 7B: five tiles of 576"),
    "onevision": Shape(4, 7290, 1458, 64, 3584, 28, 4, 128, 28, "LLaVA-OneVision 7B: ten SigLIP views of 729"),
    "qwen25vl": Shape(8, 4096, 1024, 64, 3584, 28, 4, 128, 28, "Qwen2.5-VL 7B: 1792x1792 pixels, 2x2 merged patches"),
    "video": Shape(4, 16384, 2048, 64, 3584, 28, 4, 128, 28, "Qwen2.5-VL 7B: a long clip at its token limit"),
}


def names(*wanted):
    """These shapes, or all of them; an unknown name is an error at collection, not a skipped row of the table."""
    unknown = sorted(set(wanted) - set(SHAPES))
    if unknown:
        raise ValueError(f"shape must be one of {sorted(SHAPES)}, got {unknown}")
    return list(wanted or SHAPES)
