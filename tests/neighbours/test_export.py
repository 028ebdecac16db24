"""The vision side of a pruned model in torch.export and AOTInductor says what the model says."""

import shutil

import pytest
import torch
from tiny import IMAGE_TOKEN, make_batch, make_llava

import budgetprune
from budgetprune.models.encode import encode

METHODS = ["adaptive", "pooling", "prumerge", "prumerge_plus", "tome", "uniform", "visionzip", "vispruner"]


def pruned(method, **options):
    torch.manual_seed(4)
    model = make_llava(**{name: options.pop(name) for name in ("strategy", "attention") if name in options})
    return model, budgetprune.prune(model, method, **{"keep": 5, **options})


@torch.no_grad()
def expected(model, batch):
    """What the decoder of the pruned model gets for each image."""
    return torch.stack(list(encode(model, dict(batch), gates=False)["mm_encoder_outputs"]["image"].pooler_output))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_an_exported_vision_side_equals_the_models_on_images_it_never_saw(method):
    model, pruning = pruned(method)
    program = budgetprune.export_vision(model, make_batch(seed=1)["pixel_values"])
    batch = make_batch(seed=8)
    features, kept = program.module()(batch["pixel_values"])
    torch.testing.assert_close(features, expected(model, batch), atol=1e-5, rtol=1e-5)
    assert features.shape[1] == 5 and torch.equal(kept, pruning.plan.kept)
    assert not any("language_model" in name for name in program.state_dict)
    other, _ = program.module()(make_batch(seed=1)["pixel_values"])
    assert not torch.allclose(other, features, atol=1e-2), "the images must matter"


@torch.no_grad()
@pytest.mark.parametrize("options", [{"strategy": "full"}, {"attention": "eager"}, {"keep": 16}, {"use_cls": True}],
                         ids=str)
def test_cls_attention_and_whole_budgets_are_exported_as_they_are(options):
    model, _ = pruned("adaptive", **options)
    batch = make_batch(tokens=16 + ("strategy" in options))
    features, _ = budgetprune.export_vision(model, batch["pixel_values"]).module()(batch["pixel_values"])
    torch.testing.assert_close(features, expected(model, batch), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_saved_program_feeds_the_unpruned_model(tmp_path):
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    model, pruning = pruned("prumerge")
    batch = make_batch(text=(5,))
    torch.export.save(budgetprune.export_vision(model, batch["pixel_values"]), tmp_path / "vision.pt2")
    logits = model(**batch).logits
    pruning.remove()
    features, _ = torch.export.load(tmp_path / "vision.pt2").module()(batch["pixel_values"])
    is_image = batch["input_ids"][0] == IMAGE_TOKEN
    ids = batch["input_ids"][:, ~is_image | (is_image.cumsum(0) <= features.shape[1])]
    images = {"image": BaseModelOutputWithPooling(pooler_output=list(features))}
    torch.testing.assert_close(model(input_ids=ids, mm_encoder_outputs=images).logits, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aotinductor_compiles_the_vision_side(tmp_path):
    model, pruning = pruned("adaptive")
    program = budgetprune.export_vision(model, make_batch(seed=1)["pixel_values"])
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "vision.pt2"),
                                                       inductor_configs=quick)
    batch = make_batch(seed=8)
    features, kept = torch._inductor.aoti_load_package(package)(batch["pixel_values"])
    torch.testing.assert_close(features, expected(model, batch), atol=1e-4, rtol=1e-4)
    assert torch.equal(kept, pruning.plan.kept)


@pytest.mark.parametrize("method, options, match", [
    ("fastv", {}, "between its tower and its projector .* LlavaForConditionalGeneration with fastv"),
    ("divprune", {}, "between its tower and its projector .* LlavaForConditionalGeneration with divprune"),
    ("cdpruner", {}, "on the images alone .* got cdpruner, which looks at the prompt"),
    ("random", {}, "on the images alone .* got random, which draws"),
    ("prumerge", {"keep": None}, "keep must be one count or fraction .* got the method's own count"),
    ("uniform", {"keep": [2, 3]}, r"keep must be one count or fraction .* got \(2, 3\)"),
])
def test_what_has_no_fixed_graph_is_refused_by_name(method, options, match):
    model, _ = pruned(method, **options)
    with pytest.raises(ValueError, match=match):
        budgetprune.export_vision(model, make_batch()["pixel_values"])


def test_only_a_pruned_model_in_eval_mode_is_exported():
    model = make_llava()
    with pytest.raises(ValueError, match="model must be pruned to be exported"):
        budgetprune.export_vision(model, make_batch()["pixel_values"])
    budgetprune.prune(model, "uniform", keep=4)
    with pytest.raises(ValueError, match="model must be in eval mode to be exported, got training mode"):
        budgetprune.export_vision(model.train(), make_batch()["pixel_values"])
