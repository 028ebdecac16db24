"""DART against the paper's rule, written out token by token."""

import pytest
import torch
from families import make_inputs, make_model

import budgetprune
from budgetprune.selectors import TokenView, build


def view_of(n, seed=0, batch=1, text=6, valid=None, text_valid=None):
    generator = torch.Generator().manual_seed(seed)
    tokens, keys, states, text_keys = (torch.randn(batch, *shape, generator=generator)
                                       for shape in ((n, 12), (3, n, 8), (text, 12), (3, text, 8)))
    there = torch.ones(batch, text, dtype=torch.bool) if text_valid is None else text_valid
    return TokenView(tokens, keys=keys, text_states=states, text_keys=text_keys, text_valid=there, valid=valid)


def largest(keys, there, most):
    norms = {n: float(keys[:, n].double().abs().sum()) for n in there}
    return sorted(norms, key=lambda n: -norms[n])[:most]


def published(view, b, keep, pivots=4, text_pivots=4):
    """Pivots by the keys' norm; each takes its share of the tokens least like it, of those that are left."""
    x, words = view.tokens[b].double(), view.text_states[b].double()
    exist = range(len(x)) if view.valid is None else view.valid[b].nonzero()[:, 0].tolist()
    first = largest(view.keys[b], exist, min(pivots, keep))
    others = largest(view.text_keys[b], view.text_valid[b].nonzero()[:, 0].tolist(), text_pivots)
    judges = [x[n] for n in first] + [words[n] for n in others]
    each, more = divmod(keep - len(first), len(judges))
    kept = list(first)
    for turn, judge in enumerate(judges):
        left = [n for n in exist if n not in kept]
        left.sort(key=lambda n: float(torch.cosine_similarity(judge, x[n], dim=0)))
        kept += left[: each + (turn < more)]
    return sorted(kept)


@pytest.mark.parametrize("pivots, text_pivots", [(4, 4), (1, 0), (4, 0), (8, 3), (100, 2), (2, 100)])
@pytest.mark.parametrize("n, keep", [(60, 1), (60, 3), (60, 4), (60, 5), (60, 24), (60, 27), (60, 60), (7, 6)])
def test_the_tokens_are_those_of_the_rule(n, keep, pivots, text_pivots):
    view = view_of(n, seed=n + keep)
    kept = build("dart", pivots=pivots, text_pivots=text_pivots).plan(view, [keep]).kept[0].tolist()
    assert kept == published(view, 0, keep, pivots, text_pivots)


def test_samples_of_one_batch_may_have_any_size_text_and_budget():
    keep, there = [3, 40, 1, 25, 14], torch.arange(40) < torch.tensor([40, 40, 7, 30, 14])[:, None]
    words = torch.arange(6) >= torch.tensor([0, 5, 6, 2, 4])[:, None]
    view = view_of(40, batch=5, valid=there, text_valid=words)
    plan = build("dart").plan(view, keep)
    assert plan.counts() == keep
    for b, k in enumerate(keep):
        assert plan.kept[b].tolist() == published(view, b, k) + [-1] * (40 - k)


def test_a_prompt_without_text_behind_its_image_has_pivots_of_the_image_only():
    view = view_of(30, text=0, batch=2)
    plan = build("dart").plan(view, [9, 9])
    assert [row.tolist() for row in plan.kept] == [published(view, b, 9) for b in range(2)]


def test_copies_of_the_pivot_go_first():
    """A pivot, 5 copies of it, 8 tokens in other directions: of 9 tokens none is a copy."""
    basis = torch.eye(9)
    x = torch.cat([basis[:1], 2 * basis[:1].repeat(5, 1), basis[1:]])[None]
    keys = torch.ones(1, 2, 14, 4)
    keys[:, :, 0] *= -5
    none = {"text_states": x[:, :0], "text_keys": keys[:, :, :0], "text_valid": torch.ones(1, 0, dtype=torch.bool)}
    assert build("dart", pivots=1).plan(TokenView(x, keys=keys, **none), [9]).kept[0].tolist() == [0, *range(6, 14)]


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 3])
def test_it_sees_the_keys_of_the_layer_before_and_normed_states(layer):
    """Against the stock model's own cache and hidden states."""
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, words=(5, 2))
    out = model(**inputs, output_hidden_states=True, use_cache=True)
    states = model.model.language_model.norm(out.hidden_states[layer])
    keys = out.past_key_values.layers[layer - 1].keys
    exists, is_image = inputs["attention_mask"].bool(), inputs["input_ids"] == 100
    with budgetprune.prune(model, "dart", layer=layer, keep=[9, 11]) as pruning:
        model(**inputs)
        kept = pruning.plan.kept
    for b, keep in enumerate((9, 11)):
        image = is_image[b].nonzero()[:, 0]
        text = [n for n in exists[b].nonzero()[:, 0].tolist() if n > image.max()]
        view = TokenView(states[b:b + 1, image], keys=keys[b:b + 1, :, image], text_states=states[b:b + 1, text],
                         text_keys=keys[b:b + 1, :, text], text_valid=torch.ones(1, len(text), dtype=torch.bool))
        assert kept[b][kept[b] >= 0].tolist() == published(view, 0, keep)


def test_the_operations_of_the_selection_are_counted():
    assert build("dart").flops(576, 1024, 64) == 2 * 8 * 576 * 1024
    assert build("dart", text_pivots=0).flops(576, 1024, 2) == 2 * 2 * 576 * 1024


@pytest.mark.parametrize("option, least, bad", [("pivots", 1, 0), ("text_pivots", 0, -1), ("layer", 1, 0)])
def test_bad_options_are_refused(option, least, bad):
    with pytest.raises(ValueError, match=f"{option} must be at least {least}, got {bad}"):
        build("dart", **{option: bad})
