"""Average pooling to any count."""

import pytest
import torch

from budgetprune.ops import merge_tokens
from budgetprune.selectors import TokenView, build
from budgetprune.selectors.pooling import rectangles
from budgetprune.selectors.uniform import lattice


def view_of(rows, columns, batch=1):
    generator = torch.Generator().manual_seed(rows)
    return TokenView(torch.randn(batch, rows * columns, 6, generator=generator), grid=(rows, columns))


@pytest.mark.parametrize("rows, columns, stride", [(8, 8, 2), (8, 8, 4), (24, 24, 3), (12, 6, 2), (6, 6, 6)])
def test_where_a_stride_fits_it_is_average_pooling(rows, columns, stride):
    view = view_of(rows, columns)
    plan = build("pooling").plan(view, [rows * columns // stride**2])
    image = view.tokens[0].T.unflatten(1, (rows, columns))
    expected = torch.nn.functional.avg_pool2d(image, stride).flatten(1).T
    torch.testing.assert_close(merge_tokens(view.tokens, *plan.merge)[0], expected)


@pytest.mark.parametrize("rows, columns", [(8, 8), (1, 7), (7, 1), (3, 11), (11, 3), (13, 9)])
def test_any_count_cuts_the_grid_into_so_many_rectangles(rows, columns):
    for keep in range(1, rows * columns + 1):
        grid = rectangles(keep, rows, columns).unflatten(0, (rows, columns))
        assert grid.unique().tolist() == list(range(keep))
        sizes = []
        for region in range(keep):
            inside = grid == region
            high, wide = inside.any(1).nonzero(), inside.any(0).nonzero()
            box = (high.max() - high.min() + 1) * (wide.max() - wide.min() + 1)
            assert inside.sum() == box, "contiguous, and nothing of another in it"
            sizes.append(int(box))
        # Height, and width within a band, are rounded to one of two neighbours: 1 x 1 beside 2 x 3 at the most.
        assert max(sizes) <= 6 * min(sizes)
        assert grid.flatten()[torch.tensor(lattice(keep, rows, columns))].tolist() == list(range(keep))


def test_each_token_weighs_the_same_within_its_mean():
    view = view_of(5, 7)
    plan = build("pooling").plan(view, [9])
    matrix, member = plan.merge.dense(35)[0], rectangles(9, 5, 7)
    for region in range(9):
        inside = member == region
        torch.testing.assert_close(matrix[region], inside / inside.sum())


def test_without_a_grid_the_regions_are_intervals():
    view = TokenView(torch.randn(1, 10, 4))
    assert build("pooling").plan(view, [4]).merge.dense(10)[0].argmax(0).tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_samples_of_one_batch_may_have_any_budgets():
    keep, view = [3, 35, 1, 20], view_of(5, 7, batch=4)
    tokens = merge_tokens(view.tokens, *build("pooling").plan(view, keep).merge)
    assert torch.equal(tokens[1], view.tokens[1])
    torch.testing.assert_close(tokens[2, 0], view.tokens[2].mean(0))
    for b, k in enumerate(keep):
        means = [view.tokens[b, rectangles(k, 5, 7) == region].mean(0) for region in range(k)]
        torch.testing.assert_close(tokens[b, :k], torch.stack(means))


def test_the_operations_of_the_selection_are_counted():
    assert build("pooling").flops(576, 1024, 64) == 2 * 576 * 1024
    assert build("pooling").flops(576, 1024, 576) == 0
