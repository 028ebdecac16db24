"""Options of methods: a wrong one is an error that names it, at the build of the method and not in a forward."""

from inspect import signature

import numpy as np
import pytest
import torch

import budgetprune
from budgetprune.selectors import Selector, build
from budgetprune.selectors.base import _registry, find

# By the type of an option's default. What only some options of a type refuse, as 0, is in the methods' own tests.
WRONG = {
    int: [2.5, "2", True, None, [2], torch.tensor(2), -1],
    float: ["x", True, None, [0.5], float("nan"), float("inf"), -0.5],
    bool: ["yes", 1, 0.0, None],
    str: [3, None, ["attention"], "magic"],
    tuple: [0.5, None, "abc", {0.25, 0.5, 0.75}, ("a", "b", "c"), (0.25, True, 0.75), (0.25, None, 0.75),
            (0.5, 0.25, 0.75), (0.25, float("nan"), 0.75), ()],
    type(None): [-3, 0, 2.5, "x", True],
}
CASES = [pytest.param(method, name, value, id=f"{method}-{name}-{value!r}")
         for method in budgetprune.methods() for name, parameter in signature(find(method)).parameters.items()
         for value in WRONG[type(parameter.default)]]


def test_every_option_of_every_method_is_asked():
    assert {f"{case.values[0]}.{case.values[1]}" for case in CASES} >= {
        "fastv.layer", "dart.pivots", "pyramiddrop.at", "sparsevlm.at", "sparsevlm.recycle", "tome.rounds",
        "prumerge.neighbours", "prumerge.order", "prumerge_plus.neighbours", "cdpruner.negate",
        "visionzip.dominant_share", "vispruner.per_round", "adaptive.tau", "adaptive.use_cls", "adaptive.estimator",
        "adaptive.fusion", "adaptive.conditioning", "adaptive.token_position", "adaptive.hidden_dim",
        "adaptive_query.query_dim"}


@pytest.mark.parametrize("method, name, value", CASES)
def test_a_wrong_value_is_refused_by_the_options_name(method, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}(\[\d\])? must .*, got "):
        build(method, **{name: value})


@pytest.fixture(scope="module")
def model():
    from tiny import make_llava

    return make_llava()


@pytest.mark.parametrize("method, name, value", CASES)
def test_prune_refuses_it_too_and_leaves_the_model_alone(model, method, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}(\[\d\])? must "):
        budgetprune.prune(model, method, keep=4, **{name: value})
    assert "budget_pruner" not in model._modules


@pytest.mark.parametrize("method, options, error, match", [
    ("fastv", {"layer": "2"}, TypeError, "layer must be an int, got '2'"),
    ("fastv", {"layer": 2.5}, TypeError, "layer must be an int, got 2.5"),
    ("fastv", {"layer": True}, TypeError, "layer must be an int, got True"),
    ("tome", {"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
    ("pyramiddrop", {"at": 0.5}, TypeError, "at must be a sequence of fractions of the decoder's depth, got 0.5"),
    ("sparsevlm", {"at": (0.25, "b", 0.5)}, TypeError, r"at\[1\] must be a number, got 'b'"),
    ("visionzip", {"dominant_share": 1.5}, ValueError, r"dominant_share must be in \[0, 1\], got 1.5"),
    ("prumerge", {"order": "up"}, ValueError, "order must be one of 'attention', 'raster', got 'up'"),
    ("prumerge", {"order": 3}, TypeError, "order must be one of 'attention', 'raster', got 3"),
    ("adaptive", {"hidden_dim": -3}, ValueError, "hidden_dim must be at least 1, got -3"),
    ("adaptive", {"tau": 0}, ValueError, "tau must be positive, got 0"),
    ("adaptive", {"use_cls": "yes"}, TypeError, "use_cls must be True or False, got 'yes'"),
    ("adaptive_query", {"query_dim": 2.5}, TypeError, "query_dim must be an int, got 2.5"),
])
def test_the_error_says_what_was_wanted_and_what_came(method, options, error, match):
    with pytest.raises(error, match=f"^{match}$"):
        build(method, **options)


@pytest.mark.parametrize("method, options, match", [
    ("fastv", {"depth": 3}, r"fastv takes the options \['layer'\], got \['depth'\]: .*unexpected keyword.*'depth'"),
    ("fastv", {"name": "x"}, r"fastv takes the options \['layer'\], got \['name'\]"),
    ("uniform", {"layer": 3}, r"uniform takes the options \[\], got \['layer'\]"),
    ("adaptive_query", {"depth": 3, "tau": 1.0},
     r"takes the options \['tau', .*'query_dim', .*\], got \['depth'\]"),
])
def test_an_option_of_an_unknown_name_is_told_the_known(method, options, match):
    with pytest.raises(ValueError, match=match):
        build(method, **options)


def test_a_type_error_of_the_method_itself_is_not_taken_for_an_unknown_name():
    class Fussy(Selector):
        name = "fussy"

        def __init__(self, colour="red"):
            raise TypeError(f"no colour pleases, not {colour}")

    try:
        with pytest.raises(TypeError, match="^no colour pleases, not blue$"):
            build("fussy", colour="blue")
    finally:
        del _registry["fussy"]


def test_numbers_of_numpy_are_taken_and_saved_as_plain_ones():
    assert type(build("fastv", layer=np.int64(3)).layer) is int
    assert type(build("vispruner", important_share=np.float32(0.5)).important_share) is float
    assert [type(x) for x in build("pyramiddrop", at=[np.float32(0.25), 0.5]).at] == [float, float]
    options = build("adaptive_query", tau=np.float32(2), hidden_dim=np.int32(8), query_dim=np.int64(4)).options()
    assert [type(options[name]) for name in ("tau", "hidden_dim", "query_dim")] == [float, int, int]


@pytest.mark.parametrize("method", [None, 3, ["fastv"]])
def test_build_wants_a_name(method):
    with pytest.raises(TypeError, match="method must be a name of a method, got "):
        build(method)
