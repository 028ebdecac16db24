"""Pooling with a trained projector: before training it is the method pooling."""

import pytest
import torch
from tiny import make_batch, make_llava
from torch.nn.functional import avg_pool2d

import budgetprune
from budgetprune.compress import Site
from budgetprune.compress.pooling import PoolingProjector


@torch.no_grad()
@pytest.mark.parametrize("keep, window", [(6, (2, 2)), (4, (2, 3)), (1, (4, 6))])
def test_windows_that_divide_the_grid_are_average_pooling(keep, window):
    patches = torch.randn(3, 24, 5, generator=torch.Generator().manual_seed(0))
    compressor = PoolingProjector()
    compressor.bind(Site(5, (4, 6), 5, 24, 10), keep)
    pooled = avg_pool2d(patches.transpose(1, 2).unflatten(2, (4, 6)), window).flatten(2).transpose(1, 2)
    torch.testing.assert_close(compressor(patches), pooled)


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 4, 7])
def test_untrained_it_is_the_method_pooling(llava, keep):
    batch = make_batch()
    with budgetprune.prune(llava, "pooling", keep=keep):
        expected = llava(**batch).logits
    with budgetprune.prune(llava, "pooling_projector", keep=keep):
        torch.testing.assert_close(llava(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer, weights", [("none", 0), ("linear", 2), ("mlp", 4)])
def test_what_stands_behind_the_averages_is_chosen(layer, weights):
    model = make_llava()
    budgetprune.prune(model, "pooling_projector", keep=4, layer=layer)
    names = [name for name, _ in model.budget_pruner.named_parameters()]
    assert sum("selector.layer." in name for name in names) == weights
    assert sum("selector.projector." in name for name in names) == 4


def test_without_anything_that_learns_it_is_refused():
    with pytest.raises(ValueError, match="train_projector must be True with layer='none'"):
        PoolingProjector(train_projector=False)
    with pytest.raises(ValueError, match="layer must be one of 'none', 'linear', 'mlp', got 'conv'"):
        PoolingProjector(layer="conv")
