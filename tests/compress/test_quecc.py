"""QueCC against its definition: counts of parameters, a slow reference, and who hears what."""

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from budgetprune.compress import Site
from budgetprune.compress.quecc import QueCC

LLAVA = Site(width=1024, grid=(24, 24), tower_width=1024, depth=24, text_width=4096)


def small(grid=(4, 6), keep=6, seed=0, **options):
    """(a QueCC in float64 whose weights are no small numbers, patches, layers, questions)."""
    torch.manual_seed(seed)
    site = Site(width=16, grid=grid, tower_width=12, depth=24, text_width=10)
    compressor = QueCC(**options)
    compressor.bind(site, keep)
    compressor.double()
    for parameter in compressor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    n = site.tokens
    wide = len(compressor.heard(24)) * 12
    return compressor, *(torch.randn(3, *shape, dtype=torch.float64) for shape in ((n, 16), (n, wide), (10,)))


@pytest.mark.parametrize("keep, parameters, published", [
    (36, 21_008_384, 21.01), (16, 21_028_864, 21.03), (4, 21_139_456, 21.14), (1, 21_581_824, 21.58)])
def test_it_has_as_many_parameters_as_the_published_one(keep, parameters, published):
    projector = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 4096))
    with torch.device("meta"):
        compressor = QueCC(train_projector=False)
        compressor.bind(LLAVA, keep)
    assert sum(p.numel() for p in compressor.parameters()) == parameters
    assert round(parameters / 1e6, 2) == published
    assert round(sum(p.numel() for p in projector.parameters()) / 1e6, 2) == 20.98


@pytest.mark.parametrize("grid, counts", [
    ((24, 24), [144, 64, 36, 16, 9, 4, 1]), ((8, 8), [16, 4, 1]), ((27, 27), [81, 9, 1]), ((4, 6), [6]), ((5, 7), [])])
def test_its_counts_are_those_of_windows_that_divide_the_grid(grid, counts):
    site = Site(16, grid, 16, 24, 16)
    assert QueCC().counts(site) == counts
    for keep in range(1, site.tokens + 1):
        if keep in counts:
            compressor = QueCC(train_projector=False)
            compressor.bind(site, keep)
            assert compressor.q_downsample.kernel_size == compressor.q_downsample.stride
            assert compressor.window**2 * keep == site.tokens
        else:
            with pytest.raises(ValueError, match=f"keep must be .* for quecc on .* patches, got {keep}"):
                QueCC().bind(site, keep)


def reference(compressor, patches, layers, text):
    """The definition, window by window and head by head."""
    weights = dict(compressor.named_parameters())
    (rows, columns), s = compressor.site.grid, compressor.window

    def dense(x, name):
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def mlp(x, name):
        return norm(dense(gelu(dense(x, f"{name}.0")), f"{name}.2"), f"{name}.3")

    heads, width = compressor.attention.num_heads, compressor.site.width
    each = width // heads
    w, b = weights["attention.in_proj_weight"], weights["attention.in_proj_bias"]
    result = torch.zeros(len(patches), rows // s * (columns // s), width, dtype=torch.float64)
    for sample in range(len(patches)):
        said = norm(dense(text[sample], "text_projection.0"), "text_projection.1")
        q = mlp(patches[sample] + said, "q_proj").view(rows, columns, width)
        k, v = (mlp(layers[sample], name).view(rows, columns, width) for name in ("k_proj", "v_proj"))
        for down in range(rows // s):
            for along in range(columns // s):
                asked = weights["q_downsample.bias"].clone()
                for i in range(s):
                    for j in range(s):
                        asked += weights["q_downsample.weight"][:, 0, i, j] * q[down * s + i, along * s + j]
                cells = [(down * s + i, along * s + j) for i in range(s) for j in range(s)]
                mine = linear(asked, w[:width], b[:width])
                keys = [linear(k[cell], w[width:2 * width], b[width:2 * width]) for cell in cells]
                values = [linear(v[cell], w[2 * width:], b[2 * width:]) for cell in cells]
                out = torch.zeros(width, dtype=torch.float64)
                for head in range(heads):
                    part = slice(head * each, (head + 1) * each)
                    score = [math.exp(mine[part] @ key[part] / math.sqrt(each)) for key in keys]
                    for share, value in zip(score, values):
                        out[part] += share / sum(score) * value[part]
                token = down * (columns // s) + along
                result[sample, token] = dense(out, "attention.out_proj")
    return result


@torch.no_grad()
@pytest.mark.parametrize("grid, keep, options", [
    ((4, 6), 6, {}), ((4, 4), 1, {"heads": 4}), ((6, 6), 4, {"layers": [3, -1]}), ((6, 6), 9, {"heads": 1})], ids=str)
def test_it_is_what_the_definition_says(grid, keep, options):
    compressor, *looked_at = small(grid, keep, **options)
    torch.testing.assert_close(compressor(*looked_at), reference(compressor, *looked_at), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_a_token_sees_its_window_and_no_other_row_by_row():
    compressor, patches, layers, text = small((4, 6), 6)
    before = compressor(patches, layers, text)
    for row in range(4):
        for column in range(6):
            for which in (patches, layers):
                changed = which.clone()
                changed[:, row * 6 + column] += 1
                after = compressor(*((changed, layers) if which is patches else (patches, changed)), text)
                moved = (after != before).any(2)[0].nonzero()[:, 0].tolist()
                assert moved == [row // 2 * 3 + column // 2]


@torch.no_grad()
def test_the_question_decides_where_to_look_and_not_what_is_there():
    compressor, patches, layers, text = small()
    assert not torch.equal(compressor(patches, layers, text), compressor(patches, layers, text.flip(0)))
    alike = layers[:, :1].expand_as(layers).contiguous()  # where all patches are one, every look finds the same
    torch.testing.assert_close(compressor(patches, alike, text), compressor(patches, alike, text.flip(0)))
    torch.testing.assert_close(compressor(patches, alike, text), compressor(patches.flip(0), alike, text))


@pytest.mark.parametrize("depth, heard", [
    (24, (12, 16, 22, 23)), (48, (24, 32, 44, 46)), (27, (13, 18, 24, 25)), (12, (6, 8, 11, 11)), (4, (2, 2, 3, 3))])
def test_it_hears_the_published_layers_or_those_at_the_same_part_of_the_depth(depth, heard):
    assert QueCC().heard(depth) == heard


def test_layers_are_counted_as_hidden_states_are():
    assert QueCC(layers=(0, 3, -1, -2)).heard(4) == (0, 3, 4, 3)
    for layers in ([5], [-6]):
        with pytest.raises(ValueError, match=r"layers must be in \[-5, 4\] for a tower of 4 layers"):
            QueCC(layers=layers).heard(4)


@pytest.mark.parametrize("options, error, match", [
    ({"layers": []}, ValueError, "layers must name at least one hidden state, got none"),
    ({"layers": "12"}, TypeError, "layers must be a sequence of ints, got '12'"),
    ({"layers": [1.5]}, TypeError, r"layers\[0\] must be an int, got 1.5"),
    ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
    ({"turn_end": 3}, TypeError, "turn_end must be a sequence of ints, got 3"),
    ({"skip": ["a"]}, TypeError, r"skip\[0\] must be an int, got 'a'"),
    ({"train_projector": 1}, TypeError, "train_projector must be True or False, got 1"),
])
def test_a_wrong_option_is_named(options, error, match):
    with pytest.raises(error, match=match):
        QueCC(**options)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads must divide 20, the width of the features, got 8"):
        QueCC().bind(Site(20, (4, 4), 20, 24, 20), 4)
