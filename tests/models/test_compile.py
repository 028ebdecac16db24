"""torch.compile around a pruned model: as many graphs as the stock model, and what it says without being compiled."""

import pytest
import torch
from families import IMAGE, VIDEO, make_inputs, make_model

import budgetprune
from budgetprune.models.base import family_of

VISION = {"uniform": [3, 2], "prumerge": [3, 2], "visionzip": [3, 2]}
INSIDE = {"fastv": [3, 2], "uniform+fastv": ([6, 5], [3, 2])}
GREEDY = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}


class Graphs:
    """A backend that runs graphs as they are, and counts them. Breaks are one less than graphs: nothing runs twice."""

    def __init__(self):
        self.sizes = []

    def __call__(self, graph, example):
        self.sizes.append(len(graph.graph.nodes))
        return graph.forward


@pytest.fixture
def graphs():
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


@torch.no_grad()
def counted(model, part, inputs):
    """(graphs of one forward where `part` of the model is compiled in place, logits)."""
    torch.compiler.reset()
    graphs = Graphs()
    model(**inputs)  # transformers fills tables of its own in its first call, in which it is broken up more often
    part.compile(backend=graphs)
    try:
        logits = model(**inputs).logits
        once = len(graphs.sizes)
        assert torch.equal(model(**inputs).logits, logits) and len(graphs.sizes) == once, "the second call compiles"
    finally:
        part._compiled_call_impl = None
    return once, logits


def measured(name):
    """(model, inputs, its own number of graphs)."""
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    return model, inputs, counted(model, model, inputs)[0]


@pytest.fixture(scope="module")
def llava():
    return measured("llava")


@pytest.fixture(scope="module")
def qwen():
    return measured("qwen2_5_vl")


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen"])
@pytest.mark.parametrize("method", VISION)
def test_pruning_before_the_language_model_adds_no_graph_to_a_compiled_model(request, name, method):
    """Encoding and choosing are done before the model's forward, in a hook that torch.compile leaves alone. So there
    are as many graphs as in the stock model, or less where that is broken up inside its encoder. The tower is compiled
    by itself where that is wanted, see below."""
    model, inputs, own = request.getfixturevalue(name)
    with budgetprune.prune(model, method, keep=VISION[method]):
        expected = model(**inputs).logits
        found, logits = counted(model, model, inputs)
    assert torch.equal(logits, expected)
    assert found <= own


@torch.no_grad()
@pytest.mark.parametrize("method", INSIDE)
def test_pruning_inside_the_language_model_adds_no_graph_to_a_compiled_model(llava, method):
    """Not one: how many columns stay is known before the model begins, so that only which ones is left to the graph."""
    model, inputs, own = llava
    with budgetprune.prune(model, method, keep=INSIDE[method]) as pruning:
        expected, stages = model(**inputs).logits, pruning.stages
        found, logits = counted(model, model, inputs)
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(stages, pruning.stages, strict=True))
    assert torch.equal(logits, expected)
    assert found == own == 4


@torch.no_grad()
@pytest.mark.parametrize("name, method", [("llava", "pyramiddrop"), ("qwen2_5_vl", "fastv")])
def test_a_language_model_that_is_compiled_by_itself_stays_one_graph(name, method):
    """With one stage or several, and with several position ids for each token."""
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    decoder = family_of(model).decoder(model)
    with budgetprune.prune(model, method, keep=[3, 2]):
        expected = model(**inputs).logits
        found, logits = counted(model, decoder, inputs)
    assert torch.equal(logits, expected)
    assert found == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_a_tower_and_a_projector_that_are_compiled_by_themselves_stay_whole(name):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        for method in ("prumerge", "uniform"):
            with budgetprune.prune(model, method, keep=[3, 2]):
                expected = model(**inputs).logits
                found, logits = counted(model, part, inputs)
            assert torch.equal(logits, expected) and found == 1, (type(part).__name__, method)


@torch.no_grad()
def test_generation_compiles_no_more_graphs_than_the_stock_models(graphs):
    """The prompt, and the steps behind it, over a static cache, whose layers hold different numbers of tokens."""
    model, cache = make_model("llava"), {"cache_implementation": "static", "disable_compile": True}
    inputs, _ = make_inputs("llava", model)

    def compiled():
        torch.compiler.reset()
        graphs.sizes.clear()
        model.forward = torch.compile(type(model).forward.__get__(model), backend=graphs)
        try:
            return model.generate(**inputs, **GREEDY, **cache), len(graphs.sizes)
        finally:
            del model.forward

    expected = model.generate(**inputs, **GREEDY, **cache)
    tokens, own = compiled()
    assert torch.equal(tokens, expected)
    with budgetprune.prune(model, "uniform+fastv", keep=([6, 5], [3, 2])):
        expected = model.generate(**inputs, **GREEDY, **cache)
        tokens, found = compiled()
    assert torch.equal(tokens, expected)
    assert found <= own


@torch.no_grad()
def test_prompts_and_budgets_of_other_sizes_do_not_compile_again_and_again(graphs):
    """One graph for the first sizes, and one for all others, as in the stock model."""
    model = make_model("llava")
    with budgetprune.prune(model, "fastv", keep=3) as pruning:
        for words, keep in ((5, 3), (6, 4), (9, 7), (12, 5), (7, 9)):
            inputs, _ = make_inputs("llava", model, words=(words,), images=(1,), seed=words)
            pruning.set_keep(keep)
            expected, kept = model(**inputs).logits, pruning.plan.kept
            model.model.language_model.compile(backend=graphs)
            logits = model(**inputs).logits
            model.model.language_model._compiled_call_impl = None
            assert torch.equal(logits, expected) and torch.equal(pruning.plan.kept, kept)
    assert len(graphs.sizes) == 2


@torch.no_grad()
def test_a_model_that_is_compiled_already_can_be_pruned_and_restored(graphs):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model)
    compiled = torch.compile(model, backend=graphs)
    stock = compiled(**inputs).logits
    with budgetprune.prune(model, "uniform+fastv", keep=(4, 2)):
        expected = model(**inputs).logits
        assert torch.equal(compiled(**inputs).logits, expected)
    assert torch.equal(compiled(**inputs).logits, stock)


def test_gradients_of_a_compiled_model_are_those_of_the_model(graphs):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, labels=True)
    weight = family_of(model).tower_attention(model, 0).q_proj.weight
    with budgetprune.prune(model, "uniform+fastv", keep=([6, 5], [3, 2])):
        model(**inputs).loss.backward()
        expected, weight.grad = weight.grad, None
        torch.compile(model, backend="aot_eager")(**inputs).loss.backward()
    assert float(expected.abs().sum()) > 0
    torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-4)
