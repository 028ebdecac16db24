"""What a forward pass consists of: every matrix product, with its operations and the values that it moves.

One list serves both questions: its operations summed are the FLOPs, and each operator's own bound is the roofline.
"""

from typing import NamedTuple

from .shapes import DecoderShape, TowerShape


class Operator(NamedTuple):
    """flops: 2 per multiply-add of matrix products, 0 of all else. weights, moved: values read of parameters, and
    values read and written of everything else."""

    name: str
    flops: int
    weights: int
    moved: int


def product(name: str, rows: int, inputs: int, outputs: int, *, copies=1) -> Operator:
    """[rows, inputs] x [inputs, outputs]; copies: matrices of this size that the rows share (experts)."""
    return Operator(name, 2 * rows * inputs * outputs, copies * inputs * outputs, rows * (inputs + outputs))


def attention(batch, queries, keys, pairs, heads, kv_heads, head_dim, fused) -> list[Operator]:
    """Scores, softmax and weighted sum of one layer; pairs: of a query and a key that are computed, per head.

    fused: as flash attention does it, nothing of size queries x keys touches memory.
    """
    q, kv = batch * queries * heads * head_dim, batch * keys * kv_heads * head_dim
    flops, scores = 2 * batch * pairs * heads * head_dim, batch * pairs * heads
    if fused:
        return [Operator("attention", 2 * flops, 0, 2 * q + 2 * kv)]
    return [Operator("scores", flops, 0, q + kv + scores), Operator("softmax", 0, 0, 2 * scores),
            Operator("weighted sum", flops, 0, scores + kv + q)]


def pointwise(name, values, fused) -> list[Operator]:
    """A step that computes value by value; fused: inside its neighbour, so that nothing is moved for it."""
    return [] if fused else [Operator(name, 0, 0, values)]


def tower_operators(tower: TowerShape, runs=1, grids=None, *, extra=0, fused=True) -> list[Operator]:
    """`runs` crops through the tower, or the packed pictures of `grids`, ((frames, rows, columns), ...) in patches.

    extra: tokens behind the patches of each crop or frame, which see them all; windows do not see them.
    """
    width, head_dim = tower.hidden, tower.hidden // tower.heads
    if grids is None:
        row = tower.patches + tower.class_token + extra
        patches, rows = runs * tower.patches, runs * row
        whole = windowed = runs * row**2
    else:
        patches, added = sum(t * h * w for t, h, w in grids), extra * sum(t for t, _, _ in grids)
        rows, whole = patches + added, sum(t * (h * w + extra) ** 2 for t, h, w in grids)
        windowed = sum(t * _squares(h, tower.window) * _squares(w, tower.window) for t, h, w in grids) + added
    if not rows:
        return []
    each = [product("linear", rows, *matrix) for matrix in tower.matrices]
    each += pointwise("norms, sums, activation", _between(rows, width, tower.mlp, 2, tower.gated), fused)
    out = [product("patches", patches, tower.pixels, width)]
    for layer in range(tower.layers):
        pairs = whole if tower.window is None or layer in tower.whole_layers else windowed
        out += attention(1, rows, rows, pairs, tower.heads, tower.heads, head_dim, fused)
        out += each
    if tower.pooling_head:  # one learned query for each crop
        out += [product("linear", rows, width, width)] * 2 + [product("linear", runs, width, width)] * 2
        out += attention(runs, 1, patches // runs, patches // runs, tower.heads, tower.heads, head_dim, fused)
        out += [product("linear", runs, width, tower.mlp), product("linear", runs, tower.mlp, width)]
    return out


def _squares(length, window):
    """Sum of the squared sizes of the parts that windows cut a side into."""
    if window is None:
        return length**2
    return length // window * window**2 + (length % window) ** 2


def _between(rows, hidden, mlp, norms, gated):
    """Values that norms, residual sums and the activation of one layer read and write."""
    return rows * ((2 * norms + 6) * hidden + (3 if gated else 2) * mlp)


def projector_operators(shape, tokens: int) -> list[Operator]:
    """All matrices of the projector over `tokens` image tokens."""
    return [product("linear", tokens, *matrix) for matrix in shape.projector.matrices] if tokens else []


def decoder_operators(decoder: DecoderShape, queries, keys, *, batch=1, attention_as="full", fused=True):
    """The decoder's layers without the head: a list per layer.

    queries, keys: one count per layer; a layer with as many of both is a prefill, of which `attention_as` says
    whether all pairs are computed or the causal ones. Layers without queries are skipped.
    """
    done: dict[tuple, list[Operator]] = {}  # most layers are alike
    layers = []
    for layer, (q, k) in enumerate(zip(queries, keys, strict=True)):
        window = decoder.windows[layer] if decoder.windows else None
        kind = q, k, window, decoder.sparse(layer)
        if kind not in done:
            done[kind] = _layer(decoder, *kind, batch, attention_as, fused) if q else []
        layers.append(done[kind])
    return layers


def _layer(decoder, queries, keys, window, sparse, batch, attention_as, fused):
    hidden, mlp, rows = decoder.hidden, decoder.mlp, batch * queries
    inner, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    out = [product("linear", rows, *matrix) for matrix in ((hidden, inner), (hidden, kv), (hidden, kv))]
    keys, pairs = _pairs(decoder, queries, keys, window, attention_as)
    out += attention(batch, queries, keys, pairs, decoder.heads, decoder.kv_heads, decoder.head_dim, fused)
    out.append(product("linear", rows, inner, hidden))
    matrices = 1 + decoder.gated
    if sparse:
        taken = decoder.experts_per_token
        hit, mlp = min(decoder.experts, rows * taken), taken * decoder.expert_mlp + decoder.shared_mlp
        out.append(product("router", rows, hidden, decoder.experts))
        out += [product("experts", rows * taken, hidden, decoder.expert_mlp, copies=hit)] * matrices
        out.append(product("experts", rows * taken, decoder.expert_mlp, hidden, copies=hit))
    dense = decoder.shared_mlp if sparse else mlp
    if dense:
        out += [product("linear", rows, hidden, dense)] * matrices + [product("linear", rows, dense, hidden)]
    return out + pointwise("norms, sums, activation", _between(rows, hidden, mlp, decoder.norms, decoder.gated), fused)


def _pairs(decoder, queries, keys, window, attention_as):
    """(keys that are read, pairs that are computed) of one layer."""
    if queries != keys:  # behind a cache, of which a window holds what it can see
        keys = keys if window is None else min(keys, window - 1 + queries)
        return keys, queries * keys
    if attention_as == "full" or decoder.prefix_lm:
        return keys, queries * keys
    seen = queries if window is None else min(queries, window)
    return keys, seen * (seen + 1) // 2 + (queries - seen) * seen
