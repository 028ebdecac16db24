"""The resampler against its definition."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm, linear

from budgetprune.compress import Site
from budgetprune.compress.resampler import Resampler, sines


def small(grid=(4, 6), keep=4, **options):
    torch.manual_seed(0)
    compressor = Resampler(**options)
    compressor.bind(Site(16, grid, 16, 24, 10), keep)
    compressor.double()
    for parameter in compressor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return compressor, torch.randn(3, grid[0] * grid[1], 16, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("keep, options", [(4, {}), (1, {"heads": 4}), (9, {"heads": 2})], ids=str)
def test_it_is_what_the_definition_says(keep, options):
    compressor, patches = small(keep=keep, **options)
    weights, width, heads = dict(compressor.named_parameters()), 16, options.get("heads", 1)

    def norm(x, name):
        return layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    (w, b), each = (weights[f"attention.in_proj_{kind}"] for kind in ("weight", "bias")), width // heads
    queries = norm(compressor.query, "norm_query") + compressor.query_place
    for sample, made in zip(patches, compressor(patches), strict=True):
        x = norm(sample, "norm_patches")
        q = linear(queries, w[:width], b[:width])
        k = linear(x + compressor.patch_place, w[width:2 * width], b[width:2 * width])
        v = linear(x, w[2 * width:], b[2 * width:])
        out = torch.empty(keep, width, dtype=torch.float64)
        for token in range(keep):
            for head in range(heads):
                part = slice(head * each, (head + 1) * each)
                share = (k[:, part] @ q[token, part] / math.sqrt(each)).softmax(0)
                out[token, part] = share @ v[:, part]
        out = linear(out, weights["attention.out_proj.weight"], weights["attention.out_proj.bias"])
        torch.testing.assert_close(made, norm(out, "norm_out"), atol=1e-10, rtol=1e-10)


def test_places_are_the_sines_of_column_then_row():
    table = sines(torch.tensor([0.0, 1.0, 2.5]), torch.tensor([0.0, 4.0]), 8)
    assert table.shape == (6, 8)
    for row, down in enumerate((0.0, 1.0, 2.5)):
        for column, along in enumerate((0.0, 4.0)):
            expected = [function(at * slow) for at in (along, down) for function in (math.sin, math.cos)
                        for slow in (1.0, 10000**-0.5)]
            torch.testing.assert_close(table[2 * row + column], torch.tensor(expected))


def test_patches_stand_where_their_rectangles_query_stands():
    """With as many queries as patches both have one table; with fewer, a query's place is its patches' mean."""
    compressor, _ = small(grid=(4, 4), keep=9)
    whole = sines(torch.arange(4.0), torch.arange(4.0), 16)
    assert compressor.query_place.shape == (9, 16)
    torch.testing.assert_close(sines(*[(torch.arange(4.0) + 0.5) * 4 / 4 - 0.5] * 2, 16), whole)
    four, _ = small(grid=(4, 4), keep=4)
    torch.testing.assert_close(four.patch_place.float(), sines(*[torch.tensor([-0.25, 0.25, 0.75, 1.25])] * 2, 16))


@torch.no_grad()
def test_every_token_reads_every_patch_and_one_query_tells_places_apart():
    compressor, patches = small(keep=1)
    for n in range(24):
        changed = patches.clone()
        changed[:, n, 3] += 1  # all channels alike would be taken out by the norm
        assert (compressor(changed) != compressor(patches)).any(2).all()
    shuffled = patches[:, torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    assert (compressor(shuffled) - compressor(patches)).abs().max() > 1e-3


def test_its_counts_are_squares_below_the_number_of_patches():
    assert Resampler().counts(Site(16, (4, 6), 16, 24, 10)) == [16, 9, 4, 1]
    assert Resampler().counts(Site(16, (4, 4), 16, 24, 10)) == [9, 4, 1]


def test_heads_are_of_128_channels_unless_told():
    def heads(width, **options):
        with torch.device("meta"):
            compressor = Resampler(train_projector=False, **options)
            compressor.bind(Site(width, (4, 4), 16, 24, 10), 4)
        return compressor.attention.num_heads

    assert (heads(1024), heads(64), heads(64, heads=4)) == (8, 1, 4)
    with pytest.raises(ValueError, match="heads must divide 64, .* got 5 heads"):
        heads(64, heads=5)
    with pytest.raises(ValueError, match="must be a multiple of 4 for two coordinates"):
        heads(18)
