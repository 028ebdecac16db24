"""Methods inside the language model: their stages, their averages, and SparseVLM's raters and clusters."""

import pytest
import torch

from budgetprune.selectors import TokenView, available, build
from budgetprune.selectors.base import find, spread
from budgetprune.selectors.sparsevlm import density_peaks, recycled, split

INSIDE = [name for name in available() if find(name).place == "llm"]


@pytest.mark.parametrize("method, keep, stages, average", [
    ("fastv", 288, ((2, 288),), 306.0),
    ("fastv", 144, ((2, 144),), 171.0),
    ("pyramiddrop", 72, ((8, 288), (16, 144), (24, 72)), 270.0),
    ("sparsevlm", 113, ((3, 309), (7, 204), (16, 113)), 206.5),
    ("sparsevlm", 39, ((3, 312), (7, 117), (16, 39)), 145.40625),
    ("sparsevlm", 18, ((3, 82), (7, 32), (16, 18)), 82.25),
])
def test_published_settings_have_the_published_counts(method, keep, stages, average):
    assert build(method).stages(576, keep, 32) == stages
    assert build(method).average(576, keep, 32) == average


@pytest.mark.parametrize("depth", [4, 5, 24, 28, 32, 80])
@pytest.mark.parametrize("method", INSIDE)
def test_stages_only_ever_drop_and_end_with_the_budget(method, depth):
    chosen = build(method)
    for tokens in (1, 7, 16, 576):
        for keep in {1, min(5, tokens), max(1, tokens // 3), tokens}:
            stages = chosen.stages(tokens, keep, depth)
            layers, left = zip(*stages)
            assert layers == tuple(sorted(set(layers))) and 1 <= layers[0] and layers[-1] < depth
            assert left[-1] == keep
            if method != "sparsevlm":  # the published lists are not monotonic in the budget, but in the stage
                assert list(left) == sorted(left, reverse=True)
            assert max(left) <= tokens and keep <= chosen.average(tokens, keep, depth) <= tokens
            if keep == tokens:
                assert set(left) == {tokens}


def test_stages_of_sparsevlm_never_grow():
    method = build("sparsevlm")
    for keep in range(1, 577):
        left = [count for _, count in method.stages(576, keep, 32)]
        assert left == sorted(left, reverse=True)


def test_a_method_before_the_decoder_has_the_same_tokens_in_all_layers():
    assert build("uniform").stages(576, 64, 32) == () and build("uniform").average(576, 64, 32) == 64


def test_layers_scale_with_the_depth_and_stay_apart():
    assert spread((0.25, 0.5, 0.75), 32) == (8, 16, 24) and spread((0.25, 0.5, 0.75), 40) == (10, 20, 30)
    assert spread((3 / 32, 7 / 32, 16 / 32), 4) == (1, 2, 3)
    with pytest.raises(ValueError, match="at must name 3 different layers behind the first, got .* of 3 layers"):
        spread((0.25, 0.5, 0.75), 3)


@pytest.mark.parametrize("tokens, total, kept", [(576, 309, 300), (309, 204, 200), (204, 113, 110), (576, 312, 303),
                                                 (312, 117, 110), (117, 39, 36), (576, 82, 66), (82, 32, 30),
                                                 (32, 18, 17)])
def test_a_published_stage_recycles_what_its_code_recycles(tokens, total, kept):
    assert split(tokens, total) == (kept, total - kept)
    assert recycled(tokens - kept) == total - kept == int((int(0.3 * (tokens - kept)) + 1) / 10) + 1


def test_every_budget_is_split_into_itself():
    for tokens in range(1, 60):
        for keep in range(1, tokens + 1):
            kept, made = split(tokens, keep)
            assert kept + made == keep and made <= keep // 2
        assert split(tokens, tokens) == (tokens, 0)


def test_raters_are_the_words_that_the_image_points_to_more_than_to_the_mean_word():
    torch.manual_seed(0)
    image, text = torch.randn(3, 6, 8), torch.randn(3, 5, 8)
    exists = torch.arange(5) < torch.tensor([5, 3, 0])[:, None]
    valid = torch.arange(6) < torch.tensor([6, 4, 6])[:, None]
    rows = build("sparsevlm").rows(TokenView(image, text=text, text_valid=exists, valid=valid))
    for b, (words, tokens) in enumerate([(5, 6), (3, 4)]):
        weight = (image[b, :tokens] @ text[b, :words].T).softmax(1).mean(0)
        assert rows[b].tolist() == [*(weight > weight.mean()).tolist(), *[False] * (5 - words)]
    assert not rows[2].any()


def plain_density_peaks(x, clusters):
    """DPC-KNN, one token at a time: {centre: members}. Of equal densities the first counts as the higher."""
    n = len(x)
    distance = [[float((x[i] - x[j]).norm()) / x.shape[1] ** 0.5 for j in range(n)] for i in range(n)]
    density = [float(torch.tensor([d * d for d in sorted(row)[:clusters]]).mean().neg().exp()) for row in distance]
    furthest = max(max(row) for row in distance)
    score = []
    for i in range(n):
        above = [distance[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        score.append(min(above, default=furthest) * density[i])
    centres = sorted(range(n), key=lambda i: -score[i])[:clusters]
    members = {c: [] for c in centres}
    for i in range(n):
        members[i if i in centres else min(centres, key=lambda c: distance[i][c])].append(i)
    return members


@pytest.mark.parametrize("clusters", [2, 3, 6])
def test_clusters_are_those_of_density_peaks_one_token_at_a_time(clusters):
    torch.manual_seed(clusters)
    x = torch.randn(20, 4) + 3 * torch.randn(4, 1, 4).expand(4, 5, 4).reshape(20, 4)
    found = {centre: members.tolist() for centre, members in density_peaks(x, clusters)}
    assert found == plain_density_peaks(x, clusters)


def test_equal_tokens_are_one_cluster_each_way_without_an_error():
    found = density_peaks(torch.zeros(7, 3), 3)
    assert sorted(n for _, members in found for n in members.tolist()) == list(range(7))


def test_sparsevlm_keeps_the_best_and_recycles_the_next_best():
    """54 tokens, 27 wanted: of 28 dropped, int(0.3 * 28) + 1 = 9 make one cluster; the worst 19 are lost."""
    torch.manual_seed(0)
    tokens, score = torch.randn(1, 54, 8), torch.rand(1, 54)
    plan = build("sparsevlm").plan(TokenView(tokens, attention=score), [27])
    order = score[0].argsort(descending=True)
    dense = plan.merge.dense(54)[0]
    used = dense.sum(0)
    assert plan.counts() == [27] and torch.equal(plan.kept[0], plan.kept[0].sort().values)
    assert set(order[:26].tolist()) < set(plan.kept[0].tolist())
    assert set((used > 0).nonzero().flatten().tolist()) == set(order[:26 + 9].tolist())
    torch.testing.assert_close(dense.sum(1), torch.ones(27))
    assert sorted(dense.gt(0).sum(1).tolist()) == [1] * 26 + [9]
    assert all(dense[m, n] > 0 for m, n in enumerate(plan.kept[0].tolist()))


def test_without_recycling_the_best_stay():
    torch.manual_seed(0)
    score = torch.rand(2, 30)
    plan = build("sparsevlm", recycle=False).plan(TokenView(torch.randn(2, 30, 8), attention=score), [9, 4])
    for row, k, s in zip(plan.kept, (9, 4), score):
        assert row[:k].tolist() == s.topk(k).indices.sort().values.tolist()


def test_options_survive_json():
    import json

    for name in INSIDE:
        method = build(name)
        assert build(name, **json.loads(json.dumps(method.options()))) == method
