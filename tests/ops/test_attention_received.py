"""attention_received: hand answers, laws, references, precision, torch contracts."""

import math

import pytest
import torch

from budgetprune.ops import _native, attention_received
from budgetprune.ops.attention_received import ROWS, attention_received_reference

# B, H, Hkv, Q, N, D: odd sizes, GQA, one query, more than one tile of rows and of keys.
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 3, 7, 7, 5), (2, 4, 2, 5, 33, 24), (1, 6, 1, 1, 40, 16), (1, 2, 1, 65, 130, 40),
          (2, 4, 4, 50, 50, 128), (1, 2, 2, 577, 577, 64)]


def case(shape, dtype=torch.float32, seed=0, exists=0.8):
    B, H, Hkv, Q, N, D = shape
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(B, H, Q, D, generator=generator), torch.randn(B, Hkv, N, D, generator=generator)
    return q.to(dtype), k.to(dtype), torch.rand(B, N, generator=generator) < exists


def by_definition(q, k, rows, mask):
    """Row by row, head by head, in float64."""
    B, H, Q, D = q.shape
    N, group = k.shape[2], H // k.shape[1]
    scores = torch.zeros(B, N, dtype=torch.double)
    for b in range(B):
        keys = mask[b].nonzero().flatten()
        queries = keys if Q == N else torch.arange(Q)
        chosen = {"last": queries[-1:], "cls": torch.tensor([0]), "all": queries}[rows]
        for h in range(H):
            for i in chosen if len(keys) else []:
                p = (k[b, h // group, keys].double() @ q[b, h, i].double() * D ** -0.5).softmax(0)
                scores[b, keys] += p / (H * len(chosen))
    return scores


# ------------------------------------------------------------------------------------------------ hand answers

def test_attention_received_is_the_mean_over_heads():
    """Head 0 sees scores 0 and log 3, head 1 equal ones: (1/4 + 1/2) / 2 and (3/4 + 1/2) / 2."""
    q = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    k = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    torch.testing.assert_close(attention_received(q, k, scale=1.0), torch.tensor([[0.375, 0.625]]))


@pytest.mark.parametrize("rows, answer", [("cls", [0.75, 0.25, 0.0]), ("last", [0.25, 0.75, 0.0]),
                                          ("all", [0.5, 0.5, 0.0])])
def test_attention_received_looks_from_the_rows_it_is_asked_for(rows, answer):
    """Query 0 prefers key 0 three to one, query 1 key 1; token 2 is padding, and no query either."""
    q = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [50.0, -50.0]]).view(1, 1, 3, 2)
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]).view(1, 1, 3, 2)
    scores = attention_received(q, k, rows=rows, mask=torch.tensor([[True, True, False]]), scale=1.0)
    torch.testing.assert_close(scores, torch.tensor([answer]))
    assert scores[0, 2] == 0


# -------------------------------------------------------------------------------------------------------- laws

@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_received_sums_to_one_and_gives_missing_keys_nothing(shape, rows):
    q, k, mask = case(shape)
    mask[:, 0] = True
    scores = attention_received(q, k, rows=rows, mask=mask)
    torch.testing.assert_close(scores.sum(1), torch.ones(shape[0]))
    assert (scores[~mask] == 0).all() and (scores[mask] > 0).all()


@pytest.mark.parametrize("rows", ROWS)
def test_attention_received_is_blind_to_padding(rows):
    q, k, _ = case((1, 4, 2, 9, 9, 8))
    alone = attention_received(q, k, rows=rows)
    for left in (True, False):
        pad = (0, 0, 5, 0) if left else (0, 0, 0, 5)
        padded_q, padded_k = (torch.nn.functional.pad(x, pad, value=math.nan) for x in (q, k))
        mask = torch.nn.functional.pad(torch.ones(1, 9, dtype=torch.bool), pad[2:])
        if rows == "cls" and left:
            continue  # query 0 is padding there
        scores = attention_received(padded_q, padded_k, rows=rows, mask=mask)
        torch.testing.assert_close(scores[mask], alone[0], rtol=1e-6, atol=1e-7)
        assert (scores[~mask] == 0).all()


def test_attention_received_from_the_last_row_needs_only_that_row():
    q, k, _ = case((2, 4, 2, 30, 30, 16))
    for rows, row in (("last", q[:, :, -1:]), ("cls", q[:, :, :1])):
        whole, alone = attention_received(q, k, rows=rows), attention_received(row, k)
        torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-7)


def test_attention_received_of_a_sample_without_keys_is_zero():
    q, k, mask = case((2, 4, 2, 6, 6, 8))
    mask[0] = False
    for rows in ROWS:
        assert (attention_received(q, k, rows=rows, mask=mask)[0] == 0).all()


def test_attention_received_shows_nan_in_keys_that_exist():
    q, k, _ = case((1, 1, 1, 4, 4, 4))
    k[0, 0, 2] = math.nan
    for rows in ROWS:
        assert attention_received(q, k, rows=rows).isnan().all()


def test_attention_received_bears_extreme_scores():
    q, k = torch.full((1, 1, 1, 1), 1e4), torch.tensor([1e3, 1e3, -1e3]).view(1, 1, 3, 1)
    for rows in ROWS:
        assert attention_received(q, k, rows=rows, scale=1.0).tolist() == [[0.5, 0.5, 0.0]]


def test_attention_received_answers_alike_for_any_number_of_threads():
    q, k, mask = case((2, 8, 4, 50, 50, 24))
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append([attention_received(q, k, rows=rows, mask=mask) for rows in ROWS])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in answers[1:] for a, b in zip(answers[0], other))


@pytest.mark.parametrize("rows", ROWS)
def test_attention_received_reads_strided_heads(rows):
    q, k, mask = case((2, 4, 2, 11, 11, 8))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    interleaved = [torch.stack((x, -x), -1)[..., 0] for x in (q, k)]
    expected = attention_received(q, k, rows=rows, mask=mask)
    assert torch.equal(attention_received(*strided, rows=rows, mask=mask), expected)
    assert torch.equal(attention_received(*interleaved, rows=rows, mask=mask), expected)


# -------------------------------------------------------------------------------------- references, precision

@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_attention_received_equals_the_definition_in_float64(shape, rows):
    q, k, mask = case(shape, torch.float64)
    got = attention_received(q, k, rows=rows, mask=mask)
    torch.testing.assert_close(got, by_definition(q, k, rows, mask), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_received_op_equals_the_plain_torch_reference(shape, rows, dtype):
    q, k, mask = case(shape, dtype)
    got = torch.ops.budgetprune.attention_received(q, k, rows, mask, 0.2)
    want = attention_received_reference(q, k, rows, mask, 0.2)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_received_is_no_less_precise_than_plain_torch(dtype):
    q, k, mask = case((2, 4, 2, 96, 96, 64), dtype)
    exact = by_definition(q, k, "all", torch.ones_like(mask))
    plain = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 64 ** -0.5).softmax(-1).mean((1, 2))
    error = (attention_received(q, k, rows="all") - exact).abs().max()
    assert error <= (plain - exact).abs().max() * 1.05 + 1e-7


# --------------------------------------------------------------------------------------------- torch contracts

def test_attention_received_has_no_gradient():
    q, k, _ = case((2, 4, 2, 5, 9, 8))
    scores = attention_received(q.requires_grad_(), k.requires_grad_())
    assert not scores.requires_grad


def test_attention_received_passes_opcheck():
    q, k, mask = case((2, 4, 2, 5, 9, 8))
    for rows in ROWS:
        for exists in (None, mask):
            torch.library.opcheck(torch.ops.budgetprune.attention_received.default, (q, k, rows, exists, 0.5))


@pytest.mark.parametrize("rows", ROWS)
def test_attention_received_compiles_whole_and_once_for_all_lengths(rows):
    def probe(q, k, mask):
        return attention_received(q * 2, k, rows=rows, mask=mask) + 1

    compiled = torch.compile(probe, fullgraph=True, dynamic=True, backend="aot_eager")
    for index, length in enumerate((9, 14, 33)):
        inputs = case((2, 4, 2, length, length, 8), seed=index)
        with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
            torch.testing.assert_close(compiled(*inputs), probe(*inputs))


def test_attention_received_compiles_by_inductor():
    q, k, _ = case((2, 4, 2, 9, 9, 8))
    compiled = torch.compile(attention_received, fullgraph=True)
    torch.testing.assert_close(compiled(q, k), attention_received(q, k))


def test_attention_received_takes_an_empty_batch_and_no_keys():
    for B, N in ((0, 3), (2, 0)):
        for rows in ROWS:
            assert attention_received(torch.zeros(B, 4, 3, 8), torch.zeros(B, 2, N, 8), rows=rows).shape == (B, N)
    assert attention_received(torch.zeros(1, 1, 1, 0), torch.zeros(1, 1, 2, 0)).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("change, error, words", [
    ({"q": torch.zeros(4, 5, 8)}, ValueError, "q must be"),
    ({"q": torch.zeros(2, 3, 5, 8)}, ValueError, "Hkv=2"),
    ({"q": torch.zeros(2, 0, 5, 8)}, ValueError, "positive multiple"),
    ({"q": torch.zeros(2, 4, 0, 8)}, ValueError, "at least one query"),
    ({"q": torch.zeros(2, 4, 5, 8).int()}, TypeError, "q must be"),
    ({"k": torch.zeros(2, 2, 7, 6)}, ValueError, "k must have shape"),
    ({"k": torch.zeros(2, 2, 7, 8).double()}, TypeError, "k must be"),
    ({"k": torch.zeros(2, 2, 7, 8, device="meta")}, ValueError, "k must be on"),
    ({"rows": "first"}, ValueError, "rows must be one of last, cls, all, got 'first'"),
    ({"mask": torch.ones(2, 7)}, TypeError, "mask must be"),
    ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, "mask must have shape"),
])
def test_attention_received_names_what_is_wrong(change, error, words):
    arguments = {"q": torch.zeros(2, 4, 5, 8), "k": torch.zeros(2, 2, 7, 8)} | change
    with pytest.raises(error, match=words):
        attention_received(arguments.pop("q"), arguments.pop("k"), **arguments)


@pytest.mark.skipif(_native.FACTS is None, reason="guards of the compiled op; the reference serves")
def test_attention_received_op_guards_memory_when_called_directly():
    q, k, mask = case((2, 4, 2, 5, 7, 8))
    for bad in ((q, k[..., :4], "last", mask), (q, k[:1], "last", mask), (q[:, :3], k, "last", mask),
                (q, k, "first", mask), (q, k, "last", mask[:, :3]), (q, k.half(), "last", mask),
                (q[:, :, :0], k, "last", mask)):
        with pytest.raises(RuntimeError):
            torch.ops.budgetprune.attention_received(*bad, 1.0)


# Sizes around the tiles of a GPU's kernels: 128 rows by 64 columns, D rounded up to 32, 64, 80 or 128.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("H, heads, N, D", [(2, 1, 70, 16), (2, 2, 130, 24), (1, 1, 200, 64), (2, 1, 65, 72),
                                            (1, 1, 129, 80), (2, 1, 33, 128), (1, 1, 1, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_received_by_all_rows_in_half_precision(H, heads, N, D, dtype, masked):
    torch.manual_seed(N)
    q, k = torch.randn(2, H, N, D).to(dtype), torch.randn(2, heads, N, D).to(dtype)
    mask = torch.rand(2, N) > 0.3 if masked else None
    expected = attention_received_reference(q.double(), k.double(), "all", mask, D**-0.5)
    got = attention_received(q, k, rows="all", mask=mask)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)
    more = attention_received(q[:, :, : N // 2 + 1], k, rows="all", mask=mask)  # other queries than keys
    expected = attention_received_reference(q[:, :, : N // 2 + 1].double(), k.double(), "all", mask, D**-0.5)
    torch.testing.assert_close(more.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("D", [16, 72, 128])
def test_attention_received_never_sees_what_stands_in_padding(D, rows, dtype):
    q, k, _ = case((2, 2, 1, 70, 70, D), dtype)
    column = torch.arange(70)
    mask = torch.stack((column >= 5, column < 60))  # padding on the left, and on the right past a tile's end
    if rows == "cls":
        mask[0] = column != 9  # query 0 must exist
    clean = attention_received(q, k, rows=rows, mask=mask)
    for what in (math.nan, math.inf, -math.inf):
        dirty = [x.masked_fill(~mask[:, None, :, None], what) for x in (q, k)]
        assert torch.equal(attention_received(*dirty, rows=rows, mask=mask), clean)


def test_a_query_with_nan_hides_nothing_when_all_rows_look():
    q, k = torch.randn(1, 1, 70, 16).bfloat16(), torch.randn(1, 1, 70, 16).bfloat16()
    q[0, 0, 66, 3] = torch.nan
    assert attention_received(q, k, rows="all").isnan().all()
