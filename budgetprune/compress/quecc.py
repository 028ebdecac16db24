"""QueCC: the question asks windows of the image, and each window answers with one token."""

from collections.abc import Sequence
from math import gcd

from torch import Tensor, nn

from ..checked import integer, shown
from ..cost import decoder_flops
from .base import Compressor, Site, linear_flops

BLOCKS, LAYERS, HEADS, EPS = 24, (12, 16, 22, 23), 8, 1e-6  # of CLIP's ViT-L, and of the authors' code


class QueCC(Compressor):
    """token[w] = MHA(q[w], K[patches of w], V[patches of w]), q = conv(MLP(x + W question)): one query a window.

    Li et al., 2024, "Inference Optimal VLMs Need Only One Visual Token but Larger Models", whose compressor this is,
    by the authors' code. K and V come from four layers of the tower, joined; the question goes into q only: its last
    word's state behind the language model's last norm, the model having read it as plain text without the image, and
    without gradient. conv is depthwise with kernel = stride = s, so that q[w] sees its window, too; tokens stand
    row by row. No residual, no norm behind, no feed-forward layer; then the model's projector. K is
    (rows / s) (columns / s) for an s > 1 that divides both: 144, 64, 36, 16, 9, 4 or 1 of 24 x 24. All weights begin as
    torch begins them.

    Departures: the question is known at inference, too, where the published code stops with an error. It is taken
    from the prompt's own tokens behind the row's last image, up to the first that labels say is the answer, with BOS
    before it; published: that text decoded, from its first line end up to "ASSISTANT", and tokenised anew. Without
    text behind the image BOS alone is read (zeros where there is none); several images of a row share its question,
    as published. Rows without an image have nothing to compress, and are not read (published: the word "image"). The
    tower gets no gradient where it is frozen (published: never). Layers of another tower are those at the same part of
    its depth, rounded down. Image grids that are not square are compressed as well.

    layers: hidden states of the tower for K and V, 0 its embeddings, -1 its last; None: 12, 16, 22 and 23 of 24.
    heads: of the attention.
    turn_end: token ids in a row that end the user's turn, such as those of "ASSISTANT:"; the question ends before
        them.
    skip: token ids that are no part of the question, such as a chat template's marks. BOS, EOS and padding never are.
    """

    name = "quecc"
    needs = frozenset({"text"})

    def __init__(self, layers: Sequence[int] | None = None, heads: int = HEADS, turn_end: Sequence[int] = (),
                 skip: Sequence[int] = (), train_projector: bool = True):
        super().__init__(train_projector)
        if layers is not None:
            layers = _integers("layers", layers)
            if not layers:
                raise ValueError("layers must name at least one hidden state, got none")
        self._options |= {"layers": layers, "heads": integer("heads", heads, 1),
                          "turn_end": _integers("turn_end", turn_end), "skip": _integers("skip", skip)}

    def counts(self, site: Site):
        shared = gcd(*site.grid)
        return [site.tokens // s**2 for s in range(2, shared + 1) if shared % s == 0]

    def heard(self, depth: int):
        layers = self._options["layers"]
        if layers is None:
            return tuple(layer * depth // BLOCKS for layer in LAYERS)
        if not all(-depth - 1 <= layer <= depth for layer in layers):
            raise ValueError(f"layers must be in [{-depth - 1}, {depth}] for a tower of {depth} layers, got {layers}")
        return tuple(layer % (depth + 1) for layer in layers)

    def make(self, site: Site, keep: int) -> None:
        c, heads = site.width, self._options["heads"]
        if c % heads:
            raise ValueError(f"heads must divide {c}, the width of the features, got {heads}")
        self.window = round((site.tokens / keep) ** 0.5)
        wide = len(self.heard(site.depth)) * site.tower_width

        def mlp(width):
            return nn.Sequential(nn.Linear(width, c), nn.GELU(), nn.Linear(c, c), nn.LayerNorm(c, eps=EPS))

        self.text_projection = nn.Sequential(nn.Linear(site.text_width, c), nn.LayerNorm(c, eps=EPS))
        self.q_proj, self.k_proj, self.v_proj = mlp(c), mlp(wide), mlp(wide)
        self.q_downsample = nn.Conv2d(c, c, self.window, self.window, groups=c)
        self.attention = nn.MultiheadAttention(c, heads, batch_first=True)

    def forward(self, patches, layers=None, text=None):
        exact = self.q_downsample.weight.dtype
        asked = patches.to(exact) + self.text_projection(text.to(exact))[:, None]
        grid = self.q_proj(asked).transpose(1, 2).unflatten(2, self.site.grid)
        q = self.q_downsample(grid).flatten(2).transpose(1, 2)
        keys, values = (self.windows(project(layers.to(exact))) for project in (self.k_proj, self.v_proj))
        out, _ = self.attention(q.flatten(0, 1)[:, None], keys, values, need_weights=False)
        return out.view(q.shape)

    def windows(self, x: Tensor) -> Tensor:
        """[B K, s s, C] from [B, N, C]: the patches of each window, windows row by row."""
        s, (rows, columns) = self.window, self.site.grid
        cut = x.view(len(x), rows // s, s, columns // s, s, -1).transpose(2, 3)
        return cut.reshape(-1, s * s, x.shape[-1])

    def flops(self, tokens, width, keep):
        self.require([keep])
        c = self.site.width
        projected = tokens * sum(map(linear_flops, (self.q_proj, self.k_proj, self.v_proj)))
        attention = 2 * (2 * keep * c * c + 2 * tokens * c * c + 2 * tokens * c)  # q and output; K and V; products
        return linear_flops(self.text_projection) + projected + 2 * tokens * c + attention

    def asking_flops(self, words, decoder):
        return decoder_flops(decoder, words)


def _integers(name: str, values) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of ints, got {shown(values)}")
    return [integer(f"{name}[{i}]", value, -(10**9)) for i, value in enumerate(values)]


__all__ = ["QueCC"]
