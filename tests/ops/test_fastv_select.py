"""fastv_select: hand answers, laws, the composition it fuses, torch contracts."""

import pytest
import torch

from budgetprune.ops import attention_received, fastv_select, select_topk
from budgetprune.ops.fastv_select import fastv_select_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def case(B, H, heads, N, D, dtype=torch.float32, seed=0):
    """Queries, keys, two runs of image tokens, and padding on the left."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, N, D, generator=generator).to(dtype)
    k = torch.randn(B, heads, N, D, generator=generator).to(dtype)
    column = torch.arange(N)
    image = ((column > N // 8) & (column < N // 2)) | ((column > 2 * N // 3) & (column < N - 3))
    mask = column >= torch.randint(0, N // 4, (B, 1), generator=generator)
    return q, k, image.expand(B, -1).clone(), mask


def test_fastv_keeps_text_and_the_most_attended_image_tokens():
    k = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 0.0]).view(1, 1, 6, 1)
    q = torch.ones(1, 1, 6, 1)
    image = torch.tensor([[False, True, True, True, True, False]])
    kept, scores = fastv_select(q, k, image, 2, scale=1.0)
    assert kept.tolist() == [[0, 1, 3, 5]]
    torch.testing.assert_close(scores[0], torch.softmax(k.flatten(), 0))


def test_fastv_pads_rows_that_keep_fewer_and_leaves_out_what_does_not_exist():
    q, k = torch.ones(2, 1, 5, 1), torch.arange(5.0).view(1, 1, 5, 1).expand(2, -1, -1, -1)
    image = torch.tensor([[True, True, True, True, False]]).expand(2, -1)
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]])
    kept, scores = fastv_select(q, k, image, [3, 1], mask=mask)
    assert kept.tolist() == [[1, 2, 3, 4], [3, 4, -1, -1]]
    assert scores[1, :2].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B, H, heads, N, D", [(3, 4, 2, 70, 16), (2, 6, 1, 200, 24), (2, 9, 9, 64, 8),
                                               (1, 2, 2, 33, 7), (2, 10, 1, 129, 40)])
def test_fastv_is_attention_received_then_top_k(B, H, heads, N, D, dtype):
    q, k, image, mask = case(B, H, heads, N, D, dtype)
    keep = torch.randint(0, N // 2, (B,), dtype=torch.int32)
    kept, scores = fastv_select(q, k, image, keep, mask=mask)
    assert torch.equal(scores, attention_received(q, k, mask=mask))
    for b in range(B):
        places = (image[b] & mask[b]).nonzero()[:, 0]
        best = select_topk(scores[b, places][None], min(int(keep[b]), len(places)))[0].long()
        expected = torch.cat([(~image[b] & mask[b]).nonzero()[:, 0], places[best]]).sort().values
        assert kept[b][kept[b] >= 0].tolist() == expected.tolist()
        assert (kept[b, len(expected):] == -1).all()


def test_fastv_keeps_all_when_asked_for_more_than_there_are():
    q, k, image, mask = case(2, 2, 2, 40, 8)
    kept, _ = fastv_select(q, k, image, 40, mask=mask)
    for b in range(2):
        assert kept[b][kept[b] >= 0].tolist() == mask[b].nonzero()[:, 0].tolist()


def test_fastv_keeps_no_image_token_when_asked_for_none():
    q, k, image, mask = case(2, 2, 2, 40, 8)
    kept, _ = fastv_select(q, k, image, 0, mask=mask)
    assert not image.gather(1, kept.long().clamp_min(0))[kept >= 0].any()


def test_fastv_gives_ties_to_the_lower_position_and_nan_first():
    q, k = torch.zeros(1, 1, 6, 4), torch.randn(1, 1, 6, 4)
    image = torch.tensor([[True] * 5 + [False]])
    assert fastv_select(q, k, image, 2)[0].tolist() == [[0, 1, 5]]
    k[0, 0, 3] = torch.nan  # then every score is NaN, and the lower positions stay
    assert fastv_select(torch.ones(1, 1, 6, 4), k, image, 2)[0].tolist() == [[0, 1, 5]]


def test_fastv_reads_strided_caches_as_they_are():
    q, k, image, mask = case(2, 4, 2, 50, 16)
    cache = torch.randn(2, 80, 2, 16).transpose(1, 2)
    cache[:, :, :50] = k
    expected = fastv_select(q, k, image, 9, mask=mask)
    got = fastv_select(q.transpose(1, 2).contiguous().transpose(1, 2), cache[:, :, :50], image, 9, mask=mask)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_fastv_takes_one_query_beside_a_cache():
    q, k, image, mask = case(2, 4, 2, 50, 16)
    kept, scores = fastv_select(q[:, :, -1:], k, image, 9, mask=mask)
    expected = fastv_select(q, k, image, 9, mask=mask)
    assert torch.equal(kept, expected[0]) and torch.equal(scores, expected[1])


def test_fastv_of_an_empty_batch_is_empty():
    q, k, image, mask = case(2, 2, 2, 12, 4)
    kept, scores = fastv_select(q[:0], k[:0], image[:0], 3)
    assert kept.shape == (0, 0) and scores.shape == (0, 12)


@pytest.mark.parametrize("change, error, words", [
    ({"image": torch.zeros(2, 11, dtype=torch.bool)}, ValueError, "image must have shape"),
    ({"image": torch.zeros(2, 12)}, TypeError, "image must be"),
    ({"keep": 13}, ValueError, "keep must be in"),
    ({"max_kept": 13}, ValueError, "max_kept must be in"),
    ({"mask": torch.zeros(1, 12, dtype=torch.bool)}, ValueError, "mask must have shape"),
    ({"k": torch.zeros(2, 3, 12, 4)}, ValueError, "multiple of k's Hkv=3"),
    pytest.param({"max_kept": 2}, RuntimeError, "max_kept must hold", marks=pytest.mark.cpu_values),
])
def test_fastv_names_the_bad_argument(change, error, words):
    q, k, image, _ = case(2, 2, 2, 12, 4)
    arguments = {"q": q, "k": k, "image": image, "keep": 3, **change}
    with pytest.raises(error, match=words):
        fastv_select(**arguments)


def test_fastv_passes_opcheck_and_compiles_whole():
    q, k, image, mask = case(2, 4, 2, 30, 8)
    keep = torch.tensor([3, 5], dtype=torch.int32)
    torch.library.opcheck(torch.ops.budgetprune.fastv_select.default, (q, k, image, keep, 5, mask, 30, 0.5))
    compiled = torch.compile(lambda q, k: fastv_select(q * 2, k, image, 5, mask=mask, max_kept=30), fullgraph=True,
                             backend="aot_eager")
    expected = fastv_select_reference(q * 2, k, image, None, 5, mask, 30, 8**-0.5)
    got = compiled(q, k)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])
