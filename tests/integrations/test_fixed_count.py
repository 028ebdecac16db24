"""One count for every image: what fits hosts that size the prompt first, and what is refused to them."""

import pytest
import torch
from tiny import make_batch

import budgetprune
from budgetprune.integrations.fixed_count import FixedCount
from budgetprune.models.encode import encode

FITTING = ["divprune", "none", "pooling", "prumerge", "prumerge_plus", "random", "tome", "uniform", "visionzip",
           "vispruner"]


def seen_by_projector(model, batch, layer):
    """What comes out of the tower, and the queries and keys of one of its blocks."""
    seen, attention = {}, model.model.vision_tower.encoder.layers[layer].self_attn
    handles = [
        model.model.multi_modal_projector.register_forward_pre_hook(lambda m, args: seen.update(features=args[0])),
        attention.q_proj.register_forward_hook(lambda m, args, out: seen.update(queries=out)),
        attention.k_proj.register_forward_hook(lambda m, args, out: seen.update(keys=out)),
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    heads = attention.num_heads
    return seen["features"], *(seen[name].unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("queries", "keys"))


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 5, 0.5, 16])
@pytest.mark.parametrize("method", [name for name in FITTING if name not in ("none", "random")])
def test_an_image_is_pruned_as_prune_does_it(llava, method, keep):
    batch, pruner = make_batch(), FixedCount(method, keep=keep)
    features, queries, keys = seen_by_projector(llava, batch, pruner.layer)
    if pruner.after_projector:
        projected = ours = pruner(llava.model.multi_modal_projector(features), (4, 4))
    else:
        ours = pruner(features, (4, 4), *((queries, keys) if pruner.looks else ()))
        projected = llava.model.multi_modal_projector(ours)
    assert ours.shape[:2] == (2, pruner.count(16))
    with budgetprune.prune(llava, method, keep=keep):
        theirs = encode(llava, batch, gates=False)["mm_encoder_outputs"]["image"].pooler_output
    torch.testing.assert_close(projected, torch.stack(list(theirs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", FITTING)
def test_the_answer_does_not_depend_on_what_else_is_encoded(method):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 16, 8, generator=generator)
    queries, keys = (torch.randn(3, 2, 17, 4, generator=generator) for _ in range(2))
    pruner = FixedCount(method, keep=16 if method == "none" else 5)
    together = pruner(features, (4, 4), queries, keys)
    for b in (2, 0, 1):
        alone = pruner(features[b:b + 1], (4, 4), queries[b:b + 1], keys[b:b + 1])
        torch.testing.assert_close(alone[0], together[b])


def test_every_method_either_fits_or_is_refused_with_its_reason():
    refused = {**dict.fromkeys(["dart", "fastv", "pyramiddrop", "sparsevlm"], "ranks inside the language model"),
               **dict.fromkeys(["adaptive", "adaptive_query"], "must hold its original position ids"),
               "cdpruner": "needs text"}
    assert sorted([*FITTING, *refused]) == budgetprune.methods()
    for method, reason in refused.items():
        with pytest.raises(ValueError, match=f"got {method}: .*{reason}"):
            FixedCount(method, keep=4)


@pytest.mark.parametrize("arguments, error, message", [
    ({"method": "prumerge"}, ValueError, "keep must be given: .* sized before prumerge could choose"),
    ({"method": "uniform", "keep": [3, 4]}, TypeError, r"keep must be one int or float for all images, got \[3, 4\]"),
    ({"method": "uniform", "keep": 1.5}, ValueError, r"keep as a fraction must be in \[0, 1\], got 1.5"),
    ({"method": "random", "keep": 4, "seed": "a"}, TypeError, "seed must be an int, got 'a'"),
    ({"method": "random", "keep": 4, "seed": -1}, ValueError, r"seed must be in \[0, 9223372036854775807\], got -1"),
    ({"method": None, "keep": 4}, TypeError, "method must be a name of a method, got None"),
    ({"method": "uniform", "keep": 4, "layer": 2}, ValueError, r"uniform takes the options \[\], got \['layer'\]"),
])
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        FixedCount(**arguments)


def test_a_method_that_keeps_another_count_is_found_out():
    with pytest.raises(ValueError, match="none must keep 4 of 16 tokens, kept 16"):
        FixedCount("none", keep=4)(torch.zeros(1, 16, 8), (4, 4))
