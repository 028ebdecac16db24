"""Arguments of torch.ops.budgetprune.* that reach every decision of the launchers in ops/_nvrtc."""

import torch

from budgetprune.ops._nvrtc import (
    attention_received,
    fastv_select,
    gated_attention,
    gather_tokens,
    greedy_select,
    gumbel_topk,
    merge_tokens,
    select_topk,
)

PROCESSORS = 2  # of the emulated GPU: four rows are many

# (B, N) for: a warp a row with 4, 12, 20 and 32 tokens a thread, a block a row with 4 and 8, a row in memory.
SHAPES = [(3, 100), (5, 300), (4, 577), (6, 1000), (2, 577), (1, 4200), (2, 8190)]
DTYPES = [torch.float16, torch.bfloat16, torch.float64]


def numbers(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.arange(x.shape[1]) % 7 == 0, x[:, :1], x).to(dtype)  # with ties


def counts(batch, tokens):
    return torch.linspace(0, tokens, batch).to(torch.int32) if batch > 1 else torch.tensor([tokens // 3]).int()


def select_cases():
    for batch, tokens in SHAPES:
        yield numbers(batch, tokens), counts(batch, tokens), tokens
    for dtype in DTYPES:
        yield numbers(5, 577, dtype=dtype), None, 64
        yield numbers(2, 577, dtype=dtype).repeat(1, 2)[:, ::2], counts(2, 577), 577  # not contiguous
    yield torch.tensor([[float("nan"), 1.0, float("inf"), -0.0, 0.0]]), None, 3
    yield numbers(0, 5), None, 2
    yield numbers(2, 5), None, 0


def gumbel_cases(with_stats=True):
    options = [("race", "gumbel"), ("fermi", "logistic"), ("softmax", "gumbel"), ("race", "none")]
    for at, (batch, tokens) in enumerate([*SHAPES, (1, 13000), (1, 24600)]):  # shared memory above 48 KB; scratch
        key = torch.tensor([[7, 3 * row] for row in range(batch)]) if at % 2 else torch.tensor([-3, 2**62])
        yield (numbers(batch, tokens), counts(batch, tokens), tokens, key, 0.7, *options[at % 3], with_stats)
    for at, dtype in enumerate(DTYPES):
        yield (numbers(5, 577, dtype=dtype), None, 64, torch.tensor([1, 2]), 1.5, *options[at], with_stats)
        yield (numbers(2, 577, dtype=dtype).repeat(1, 2)[:, ::2], counts(2, 577), 577, torch.tensor([1, 2]), 1.5,
               *options[-1 - at], with_stats)
    yield numbers(0, 5), None, 2, torch.tensor([1, 2]), 1.0, "race", "gumbel", with_stats


def gumbel_backward_cases():
    for logits, keep, most, key, tau, estimator, noise, _ in gumbel_cases():
        stats = torch.ops.budgetprune.gumbel_topk(logits, keep, most, key, tau, estimator, noise, True)[2]
        yield numbers(*logits.shape, dtype=logits.dtype, seed=1), logits, key, stats, tau, estimator, noise


KEY = torch.tensor([1, 2])
KEPT = torch.tensor([[0, 2, 9, 30], [4, 5, -1, -1], [-1, -1, -1, -1]], dtype=torch.int32)


def gather_cases():
    """x, kept, gate, prefix, packed, total; channels that are copied by 16, 4 and 1 bytes."""
    for packed, total in ((False, 0), (True, 6 + 3 * 2)):
        for channels, dtype in ((8, torch.float32), (3, torch.float32), (3, torch.float16), (40, torch.bfloat16)):
            x = torch.arange(3 * 40 * channels).reshape(3, 40, channels).to(dtype)
            yield x, KEPT, None, 2, packed, total
            yield x, KEPT, torch.linspace(0.1, 1, 3 * 38).reshape(3, 38), 2, packed, total
    yield torch.rand(40, 3, 6).double().transpose(0, 1), KEPT, torch.rand(3, 38).double(), 2, False, 0
    yield torch.rand(40, 3, 8).transpose(0, 1)[:, :, ::2], KEPT, None, 2, False, 0
    yield torch.rand(0, 40, 8), KEPT[:0], None, 2, False, 0
    yield torch.rand(3, 40, 8), KEPT[:, :0], None, 0, False, 0


def gather_backward_cases(gated=False):
    for x, kept, gate, prefix, packed, total in gather_cases():
        if (gate is not None) != gated:
            continue
        forward = torch.ops.budgetprune.gather_tokens(x, kept, gate, prefix, packed, total)
        grad = torch.arange(forward[0].numel()).reshape(forward[0].shape).sub(5).to(x.dtype) / 64
        if gated:
            yield grad, x, kept, gate, forward[3], prefix, packed
        else:
            yield grad, kept, forward[3], prefix, x.shape[1], packed


def heads(*shape, dtype=torch.float32, seed=0):
    """[B, H, T, D] as projections give it: [B, T, H, D] transposed."""
    generator = torch.Generator().manual_seed(seed)
    batch, count, tokens, d = shape
    return torch.randn(batch, tokens, count, d, generator=generator).to(dtype).transpose(1, 2)


Q = heads(2, 2, 4, 8)
MASK = torch.arange(70) < torch.tensor([[70], [55]])
IMAGE = (torch.arange(70) > 8) & (torch.arange(70) < 60)


def attention_cases():
    for count, kv in ((2, 2), (8, 2), (16, 2)):
        yield heads(2, count, 70, 16), heads(2, kv, 70, 16, seed=1), "last", MASK, 0.3
    yield heads(2, 4, 5, 16), heads(2, 4, 70, 16, seed=1), "cls", None, 0.3
    yield heads(2, 4, 70, 5), heads(2, 2, 70, 5, seed=1), "last", MASK, 0.3
    for dtype in DTYPES:
        yield heads(2, 4, 70, 32, dtype=dtype), heads(2, 4, 70, 32, dtype=dtype, seed=1), "last", MASK, 0.3
        yield heads(2, 2, 70, 6, dtype=dtype), heads(2, 2, 70, 6, dtype=dtype, seed=1), "all", MASK, 0.3
    for d in (32, 64, 80, 128):
        dtype = torch.float16 if d % 3 else torch.bfloat16
        yield heads(2, 4, 70, d, dtype=dtype), heads(2, 2, 70, d, dtype=dtype, seed=1), "all", MASK, d**-0.5
    yield heads(2, 2, 40, 16), heads(2, 2, 70, 16, seed=1), "all", None, 0.3
    yield heads(0, 2, 4, 16), heads(0, 2, 7, 16), "last", None, 0.3


def fastv_cases():
    for q, k, rows, mask, scale in attention_cases():
        if rows == "last":
            image = IMAGE.expand(len(q), -1)[:, :k.shape[2]]
            yield q, k, image, None, min(20, k.shape[2]), mask, min(60, k.shape[2]), scale
            yield q, k, image, torch.arange(len(q)).int() + 3, 4, mask, min(60, k.shape[2]), scale


def merge_lists(batch, tokens, outputs, entries):
    generator = torch.Generator().manual_seed(0)
    cuts = torch.randint(0, entries + 1, (batch, outputs + 1), generator=generator).sort(dim=1).values
    return cuts.int(), torch.randint(-1, tokens, (batch, entries), generator=generator).int()


def merge_cases():
    """x, offsets, index, weight: rows of whole 16 bytes and others, lists of few and of many entries."""
    for dtype in (torch.float32, *DTYPES):
        for channels, outputs, entries in ((16, 3, 9), (5, 2, 100)):
            x = torch.randn(2, 30, channels, generator=torch.Generator().manual_seed(1)).to(dtype)
            weight = torch.rand(2, entries, generator=torch.Generator().manual_seed(2))
            yield x, *merge_lists(2, 30, outputs, entries), weight.double() if dtype == torch.float64 else weight
    yield torch.rand(30, 2, 8).transpose(0, 1), *merge_lists(2, 30, 3, 9), torch.rand(2, 9)
    yield torch.rand(2, 30, 8), *merge_lists(2, 30, 0, 9), torch.rand(2, 9)


def merge_dots_cases():
    for x, offsets, index, _ in merge_cases():
        yield torch.randn(2, offsets.shape[1] - 1, x.shape[2]).to(x.dtype), x, offsets, index


def similarity(batch, tokens, dtype):
    x = torch.nn.functional.normalize(torch.randn(batch, tokens, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    return (x @ x.transpose(1, 2) + 2 * torch.eye(tokens)).to(dtype)


def greedy_cases():
    for dtype in (torch.float32, torch.float64):
        alike, relevance = similarity(2, 70, dtype), torch.linspace(0.5, 1, 140).reshape(2, 70).to(dtype)
        yield alike, None, None, 9, "max_min"
        yield alike, None, torch.tensor([3, 9], dtype=torch.int32), 9, "max_min"
        yield alike, relevance, None, 9, "dpp"
        yield alike.transpose(1, 2), None, torch.tensor([3, 9], dtype=torch.int32), 9, "dpp"
        yield similarity(1, 1024, dtype), relevance.new_ones(1, 1024), torch.tensor([5], dtype=torch.int32), 257, "dpp"
    yield torch.rand(0, 5, 5), None, None, 2, "max_min"


def transposed_cases():
    for x, offsets, index, _ in merge_cases():
        yield offsets, index, x.shape[1]
    yield *merge_lists(2, 600, 40, 1500), 600


def gated_cases():
    """Every depth on tensor cores, and rows that do not suit them."""
    mask, gate = MASK, (torch.arange(140).reshape(2, 70) % 3 > 0).float()
    for d in (24, 64, 96, 128):
        dtype = torch.float16 if d % 3 else torch.bfloat16
        yield *(heads(2, n, 70, d, dtype=dtype, seed=n) for n in (4, 2, 2)), gate, mask, True, d**-0.5
    for dtype in (torch.float32, *DTYPES):
        soft = (gate * 0.5 + 0.25).double() if dtype == torch.float64 else gate * 0.5 + 0.25
        yield *(heads(2, n, 70, 6, dtype=dtype, seed=n) for n in (4, 2, 2)), soft, None, False, 0.4
    yield *(heads(2, 2, n, 8, seed=n) for n in (0, 70, 70)), gate, None, False, 0.4
    yield *(heads(2, 2, n, 8, seed=n) for n in (5, 0, 0)), gate[:, :0], None, False, 0.4


def gated_backward_cases():
    for q, k, v, gate, mask, causal, scale in gated_cases():
        out, lse = torch.ops.budgetprune.gated_attention(q, k, v, gate, mask, causal, scale)
        yield torch.randn(q.shape).to(q.dtype), q, k, v, gate, mask, out, lse, causal, scale


CASES = {
    "select_topk": (select_topk.select_topk, select_cases),
    "gumbel_topk": (gumbel_topk.gumbel_topk, gumbel_cases),
    "gumbel_topk_backward": (gumbel_topk.gumbel_topk_backward, gumbel_backward_cases),
    "gather_tokens": (gather_tokens.gather_tokens, gather_cases),
    "gather_tokens_backward": (gather_tokens.gather_tokens_backward, gather_backward_cases),
    "gather_tokens_gated_backward": (gather_tokens.gather_tokens_gated_backward, lambda: gather_backward_cases(True)),
    "attention_received": (attention_received.attention_received, attention_cases),
    "fastv_select": (fastv_select.fastv_select, fastv_cases),
    "gated_attention": (gated_attention.gated_attention, gated_cases),
    "gated_attention_backward": (gated_attention.gated_attention_backward, gated_backward_cases),
    "merge_tokens": (merge_tokens.merge_tokens, merge_cases),
    "merge_dots": (merge_tokens.merge_dots, merge_dots_cases),
    "merge_transpose": (merge_tokens.merge_transpose, transposed_cases),
    "greedy_select": (greedy_select.greedy_select, greedy_cases),
}
