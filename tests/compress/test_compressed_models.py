"""Compressors in a model: K tokens stand for the image in forward and generate, and unprune leaves nothing."""

import copy

import pytest
import torch
from families import FAMILIES, IMAGE, make_inputs, make_model
from tiny import make_batch, make_llava, state_of

import budgetprune

COMPRESSORS = budgetprune.compressors()
TOWERS = ["llava", "llava_siglip"]


@torch.no_grad()
def compressed(model, method="quecc", keep=4, seed=0, **options):
    """A pruned model whose compressor is far from its initial state."""
    torch.manual_seed(seed)
    pruning = budgetprune.prune(model, method, keep=keep, **options)
    for parameter in model.budget_pruner.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape))
    return pruning


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("method", COMPRESSORS)
@pytest.mark.parametrize("name", TOWERS)
def test_exactly_k_tokens_reach_the_language_model_and_unprune_restores_it(name, method, padding):
    model = make_model(name)
    inputs, lengths = make_inputs(name, model, padding=padding)
    untouched, before = model(**inputs).logits, state_of(model)
    pruning = compressed(model, method)
    logits = model(**inputs).logits
    words = inputs["attention_mask"].sum(1) - torch.tensor(lengths)
    assert pruning.valid.sum(1).tolist() == (words + 4).tolist() and logits.shape[1] == int(words.max()) + 4
    assert pruning.plan.counts() == [4, 4]
    assert ((inputs["input_ids"].gather(1, pruning.index) == IMAGE) & pruning.valid).sum(1).tolist() == [4, 4]
    budgetprune.unprune(model)
    assert state_of(model) == before and torch.equal(model(**inputs).logits, untouched)


@torch.no_grad()
@pytest.mark.parametrize("method", COMPRESSORS)
@pytest.mark.parametrize("train_projector", [True, False])
def test_its_tokens_go_through_the_projector_and_stand_compactly(method, train_projector):
    """The same by hand: the stock model, given the projected tokens, with their placeholders in the prompt."""
    model, batch = make_llava(), make_batch(text=(5,))
    if method == "pooling_projector":
        compressed(model, method, train_projector=train_projector, layer="mlp")
    else:
        compressed(model, method, train_projector=train_projector)
    seen = []
    compressor = model.budget_pruner.selector
    handle = compressor.register_forward_hook(lambda module, args, made: seen.append(made))
    logits = model(**batch).logits
    handle.remove()
    projector = compressor.projector if train_projector else model.model.multi_modal_projector
    assert (compressor.projector is None) != train_projector
    budgetprune.unprune(model)
    ids = batch["input_ids"][0]
    image = (ids == IMAGE).nonzero()[:, 0]
    embedded = model.get_input_embeddings()(ids)
    prompt = torch.cat([embedded[: image[0]], projector(seen[0][0]), embedded[image[-1] + 1:]])[None]
    torch.testing.assert_close(logits, model(inputs_embeds=prompt).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name, depth", [("llava", 3), ("llava_siglip", 3)])
def test_the_layers_that_are_heard_are_the_towers_hidden_states(name, depth):
    model = make_model(name)
    inputs, _ = make_inputs(name, model)
    hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert len(hidden) == depth + 1
    compressed(model, layers=[0, 2, 1, -1])
    seen = []
    model.budget_pruner.selector.register_forward_pre_hook(lambda module, args: seen.append(args))
    model(**inputs)
    patches, layers, _ = seen[0]
    cls = int(name == "llava")
    torch.testing.assert_close(layers, torch.cat([hidden[i][:, cls:] for i in (0, 2, 1, 3)], dim=2))
    torch.testing.assert_close(patches, hidden[model.config.vision_feature_layer][:, cls:])


@torch.no_grad()
def test_the_language_model_may_get_cls_before_the_compressed_tokens():
    model, batch = make_llava(strategy="full"), make_batch(tokens=17)
    pruning = compressed(model)
    logits = model(**batch).logits
    assert logits.shape[1] == batch["input_ids"].shape[1] - 12 and pruning.plan.counts() == [4, 4]


@torch.no_grad()
@pytest.mark.parametrize("method", COMPRESSORS)
def test_rows_are_judged_alone_whatever_their_batch(method):
    """A row with two images, one without any, and one whose text is longer."""
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, words=(3, 4, 7), images=(2, 0, 1))
    pruning = compressed(model, method)
    together = model(**inputs).logits
    index, valid = pruning.index, pruning.valid
    for row, images in enumerate(([0, 1], [], [2])):
        there = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row][there][None]}
        if images:
            alone["pixel_values"] = inputs["pixel_values"][images]
        torch.testing.assert_close(model(**alone).logits[0], together[row][valid[row]], atol=1e-4, rtol=1e-4)
    assert (inputs["input_ids"].gather(1, index) == IMAGE).sum(1).tolist() == [8, 0, 4]


@torch.no_grad()
@pytest.mark.parametrize("method", COMPRESSORS)
def test_generate_says_what_forward_says_with_and_without_cache_and_with_beams(method):
    model, batch = make_llava(), make_batch()
    compressed(model, method)
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(tokens[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    new, said = tokens[:, batch["input_ids"].shape[1]:], model(**batch).logits[:, -1].argmax(-1)
    assert torch.equal(new[:, 0], said)
    assert torch.equal(tokens, model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False))
    beams = model.generate(**batch, max_new_tokens=4, do_sample=False, num_beams=3)
    assert beams.shape == tokens.shape


@torch.no_grad()
def test_a_saved_compressor_compresses_the_same_and_knows_its_count(tmp_path):
    for method in COMPRESSORS:
        batch, model, folder = make_batch(), make_llava(), tmp_path / method
        compressed(model, method).save_pretrained(folder)
        expected = model(**batch).logits
        fresh = make_llava()
        pruning = budgetprune.from_pretrained(fresh, folder)
        assert torch.equal(fresh(**batch).logits, expected)
        pruning.remove()
        budgetprune.from_pretrained(fresh, folder, keep=0.25).remove()  # a quarter of 16 is 4 as well
        with pytest.raises(ValueError, match=f"keep must be 4, which this {method} is made for, got 1"):
            budgetprune.from_pretrained(fresh, folder, keep=1)
        assert "budget_pruner" not in fresh._modules


@torch.no_grad()
def test_a_copied_model_has_its_own_compressor():
    model, batch = make_llava(), make_batch()
    compressed(model)
    expected, twin = model(**batch).logits, copy.deepcopy(model)
    for parameter in model.budget_pruner.parameters():
        parameter.zero_()
    assert torch.equal(twin(**batch).logits, expected)
    assert not torch.equal(model(**batch).logits, expected)
    budgetprune.unprune(twin)
    twin(**batch)


@torch.no_grad()
def test_a_method_inside_the_language_model_may_follow():
    model, batch = make_llava(), make_batch()
    with budgetprune.prune(model, "quecc+fastv", keep=(4, 2), train_projector=False) as pruning:
        model(**batch)
        assert pruning.plan.counts() == [4, 4] and pruning.stages[0].counts() == [2, 2]


@torch.no_grad()
@pytest.mark.parametrize("positions", [None, "original"])
def test_original_positions_are_those_of_the_windows_first_patches(positions):
    model, batch = make_llava(), make_batch(text=(5,))
    pruning = compressed(model, positions=positions)
    model(**batch)
    places = pruning.index[0][batch["input_ids"][0][pruning.index[0]] == IMAGE] - 3
    assert places.tolist() == [0, 2, 8, 10]


@torch.no_grad()
def test_a_half_precision_model_has_a_compressor_in_float32():
    model, batch = make_llava().to(torch.bfloat16), make_batch()
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    budgetprune.prune(model, "quecc", keep=4)
    assert {p.dtype for p in model.budget_pruner.parameters()} == {torch.float32}
    assert model(**batch).logits.dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("method", ["resampler", "pooling_projector"])
def test_the_vision_side_can_be_exported_where_no_question_is_asked(method):
    model, batch = make_llava(), make_batch()
    pruning = compressed(model, method)
    program = budgetprune.export_vision(model, make_batch(seed=5)["pixel_values"])
    features, kept = program.module()(batch["pixel_values"])
    seen = []
    handle = model.budget_pruner.selector.projector.register_forward_hook(lambda module, args, out: seen.append(out))
    model(**batch)
    handle.remove()
    torch.testing.assert_close(features, seen[0])
    assert torch.equal(kept, pruning.plan.kept)
    pruning.remove()
    compressed(model)
    with pytest.raises(ValueError, match="got quecc, which looks at the prompt"):
        budgetprune.export_vision(model, batch["pixel_values"])


@torch.no_grad()
@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector"])
def test_a_compiled_part_of_the_model_is_heard_and_stood_in_for_as_an_eager_one(part):
    model, batch = make_llava(), make_batch()
    compressed(model)
    expected = model(**batch).logits
    torch.compiler.reset()
    getattr(model.model, part).compile(backend="aot_eager")
    try:
        torch.testing.assert_close(model(**batch).logits, expected)
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in TOWERS])
def test_families_that_prune_behind_their_projector_have_no_place_for_it(name):
    model = make_model(name)
    before = state_of(model)
    for method in COMPRESSORS:
        match = f"{method} stands between tower and projector, where {type(model).__name__} has no place"
        with pytest.raises(ValueError, match=match):
            budgetprune.prune(model, method, keep=4)
    assert state_of(model) == before


@pytest.mark.parametrize("options, match", [
    ({"keep": 5}, "keep must be 4, 1 for quecc on 4 x 4 patches, got 5"),
    ({"keep": 16}, "keep must be 4, 1 for quecc on 4 x 4 patches, got 16"),
    ({"keep": None}, "keep must be given: quecc does not choose the count itself"),
    ({"keep": [4, 4]}, r"keep must be one count or fraction for quecc, whose weights are made for it, got \[4, 4\]"),
    ({"keep": 4, "train_keep": (1, 4)}, "train_keep is for trainable methods, quecc has one count, which is keep"),
    ({"keep": 4, "depth": 2}, r"quecc takes the options \['layers', 'heads'"),
    ({"keep": 4, "layers": [9]}, r"layers must be in \[-4, 3\] for a tower of 3 layers, got \[9\]"),
    ({"keep": 4, "heads": 5}, "heads must divide 32, the width of the features, got 5"),
])
def test_what_it_cannot_be_made_for_is_refused_and_leaves_the_model_alone(llava, options, match):
    before = state_of(llava)
    with pytest.raises(ValueError, match=match):
        budgetprune.prune(llava, "quecc", **options)
    assert state_of(llava) == before


def test_another_count_later_is_another_compressor(llava):
    pruning = budgetprune.prune(llava, "quecc", keep=4)
    pruning.set_keep(0.25)
    with pytest.raises(ValueError, match="keep must be 4, which this quecc is made for, got 1"):
        pruning.set_keep(1)
    selector = pruning.selector
    pruning.remove()
    with pytest.raises(ValueError, match="keep must be 4, which this quecc is made for, got 1"):
        budgetprune.prune(llava, selector, keep=1)
    with pytest.raises(ValueError, match="method must be a quecc that is new or was made for this model"):
        budgetprune.prune(make_llava_of_another_width(), selector, keep=4)
    budgetprune.prune(llava, selector, keep=4)


def make_llava_of_another_width():
    from families import config_of

    cls, config = config_of("llava")
    config.vision_config.hidden_size = 48
    return cls(config)


@torch.no_grad()
def test_an_image_of_another_size_is_refused():
    model, batch = make_llava(), make_batch(tokens=64)
    compressed(model)
    batch["pixel_values"] = torch.randn(2, 3, 56, 56)
    with pytest.raises(ValueError, match="4 x 4 patches, which quecc is made for, got 64|56"):
        model(**batch)
