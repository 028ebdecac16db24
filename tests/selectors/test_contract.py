"""What every method promises, asked of all that are registered."""

import dataclasses

import pytest
import torch

from budgetprune import selectors
from budgetprune.plan import TokenPlan
from budgetprune.selectors import Selector, TokenView, build

B, ROWS, COLUMNS, C, H, D, T = 4, 5, 6, 24, 3, 8, 7
N = ROWS * COLUMNS
METHODS = selectors.available()


def view_of(seed=0, batch=B):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(batch, *shape, generator=generator)

    text_valid = torch.arange(T) < torch.tensor([T, T - 3, 1, 2])[torch.arange(batch) % 4, None]
    return TokenView(draw(N, C), attention=draw(1 + N).softmax(1)[:, 1:], keys=draw(H, N, D), text=draw(T, C),
                     text_valid=text_valid, text_states=draw(T, C), text_keys=draw(H, T, D), grid=(ROWS, COLUMNS),
                     key=torch.tensor([seed, 0]))


def made(name):
    torch.manual_seed(0)
    method = build(name)
    if method.trainable:
        method.bind(C, N, C)
        method.eval()
    return method


@pytest.mark.parametrize("keep", [[1] * B, [7] * B, [1, 5, 29, 12], [N, 3, N, 1]], ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_exactly_the_asked_number_of_tokens_comes_out(name, keep):
    plan = made(name).plan(view_of(), keep)
    assert plan.counts() == keep
    for row, count in zip(plan.kept, keep):
        kept = row[row >= 0].tolist()
        assert kept == sorted(set(kept)) and all(0 <= n < N for n in kept)
        assert plan.merge is not None or len(kept) == count
        assert (row[len(kept):] == -1).all()
    assert plan.kept.dtype == torch.int32


@pytest.mark.parametrize("name", METHODS)
def test_keeping_all_changes_nothing(name):
    assert made(name).plan(view_of(), [N] * B).keeps_all(N)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_decides_the_same_twice_and_writes_nothing(name):
    view, again, method = view_of(), view_of(), made(name)
    first, second = method.plan(view, [6] * B), method.plan(view, [6] * B)
    assert torch.equal(first.kept, second.kept)
    for field in dataclasses.fields(view):
        value = getattr(view, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, field.name)), field.name


@pytest.mark.parametrize("keep", [[5, 9, 2, 7], None], ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_a_sample_is_judged_alone_whatever_its_batch(name, keep):
    method, view = made(name), view_of()
    if keep is None and not method.adaptive_count:
        with pytest.raises(ValueError, match=f"keep must be given: {name}"):
            method.plan(view, None)
        return
    together = method.plan(view, keep)
    for b in range(B):
        fields = {f.name: getattr(view, f.name) for f in dataclasses.fields(view)}
        one = TokenView(**{name: value[b:b + 1] if isinstance(value, torch.Tensor) and value.dim() > 1 else value
                           for name, value in fields.items()})
        plan = method.plan(one, None if keep is None else keep[b:b + 1])
        assert plan.kept[0][plan.kept[0] >= 0].tolist() == together.kept[b][together.kept[b] >= 0].tolist()
        assert plan.counts() == [together.counts()[b]]
        if plan.merge is not None:
            torch.testing.assert_close(plan.merge.dense(N)[0], together.merge.dense(N)[b, : plan.counts()[0]])


@pytest.mark.parametrize("name", [name for name in METHODS if build(name).needs - {"grid"}])
def test_a_missing_need_is_named(name):
    bare = TokenView(view_of().tokens)
    with pytest.raises(ValueError, match="this method needs (attention|keys|text|text_states|key), but"):
        made(name).plan(bare, [3] * B)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_does_not_merge_hands_on_tokens_as_they_were(name):
    method = made(name)
    plans = [method.plan(view_of(), keep) for keep in ([1] * B, [7] * B, [1, 5, 29, 12], [N] * B)]
    assert any(plan.merge is not None for plan in plans) == method.merges


@pytest.mark.parametrize("field", ["attention", "keys", "text", "grid", "key"])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_need_does_not_matter_to_it(name, field):
    method, view, other = made(name), view_of(), view_of(seed=1)
    theirs = (COLUMNS, ROWS) if field == "grid" else getattr(other, field)
    keep, changed = [7] * B, dataclasses.replace(view, **{field: theirs})
    plans = [method.plan(v, keep) for v in (view, changed)]
    rows = [method.rows(v) if method.place == "llm" else None for v in (seen(view), seen(changed))]
    same = torch.equal(plans[0].kept, plans[1].kept) and (rows[0] is None or torch.equal(rows[0], rows[1]))
    if plans[0].merge is not None:
        same = same and torch.equal(plans[0].merge.dense(N), plans[1].merge.dense(N))
    if field not in method.needs or field in ("attention", "text", "key"):  # at this size not all of it decides
        assert same == (field not in method.needs)


def seen(view):
    return dataclasses.replace(view, valid=torch.ones(B, N, dtype=torch.bool))


@pytest.mark.parametrize("name", METHODS)
def test_options_rebuild_the_method(name):
    method = build(name)
    assert type(build(name, **method.options())) is type(method)
    assert build(name, **method.options()).options() == method.options()


def test_random_draws_every_token_equally_often():
    view = view_of(batch=400)
    often = build("random").plan(view, [6] * 400).mask(N).float().mean(0)
    spread = (0.2 * 0.8 / 400) ** 0.5
    assert (often - 0.2).abs().max() < 4 * spread


def test_random_ignores_padding():
    view = dataclasses.replace(view_of(), valid=torch.arange(N).expand(B, N) < 9)
    assert build("random").plan(view, [9] * B).kept.tolist() == [list(range(9))] * B


@pytest.mark.parametrize("keep, expected", [
    (1, [36]), (4, [18, 22, 50, 54]), (64, list(range(64))),
    (16, [r * 8 + c for r in (1, 3, 5, 7) for c in (1, 3, 5, 7)]),
])
def test_uniform_is_a_regular_grid(keep, expected):
    view = TokenView(torch.zeros(1, 64, 2), grid=(8, 8))
    assert build("uniform").plan(view, [keep]).kept[0].tolist() == expected


def test_uniform_keeps_exactly_k_different_positions_on_any_grid():
    from budgetprune.selectors.uniform import lattice

    for rows, columns in ((8, 8), (1, 7), (7, 1), (3, 11), (24, 24)):
        for keep in range(1, rows * columns + 1):
            positions = lattice(keep, rows, columns)
            assert len(positions) == keep and positions == sorted(set(positions))
            assert 0 <= positions[0] and positions[-1] < rows * columns


def test_a_second_method_of_the_same_name_is_refused():
    with pytest.raises(ValueError, match="method 'fastv' exists already"):
        type("Another", (Selector,), {"name": "fastv"})
    with pytest.raises(ValueError, match=r"method name must be \[a-z0-9_\]\+"):
        type("Another", (Selector,), {"name": "Fast V"})
    assert selectors.available() == METHODS


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match=f"unknown method 'fastv2'; known: {', '.join(METHODS)}"):
        build("fastv2")


def test_a_plan_of_a_plain_method_has_no_lengths_to_read_back():
    plan = made("fastv").plan(view_of(), [6] * B)
    assert isinstance(plan, TokenPlan) and plan.lengths is None
