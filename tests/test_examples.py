"""Every example runs offline, on the small LLaVA of the package or a random model, and does what it says."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import budgetprune

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text())


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Imports an example in an empty folder; what it registers is forgotten behind the test."""
    from budgetprune.models import base as families
    from budgetprune.selectors import base as selectors
    from budgetprune.training import base_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(selectors, "_registry", dict(selectors._registry))
    monkeypatch.setattr(families, "_registry", list(families._registry))
    monkeypatch.setattr(base_model, "user_base_dir", lambda: tmp_path)  # the bundled one, whatever else is here

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_it_does_and_how_it_is_run(example, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as leave:
        example(name).main()
    said = capsys.readouterr().out
    assert not leave.value.code and f"python examples/{name}.py" in said


@pytest.mark.parametrize("options, kept", [([], 16), (["--method", "fastv", "--keep", "8"], 8)], ids=str)
def test_caption_prints_both_answers_and_what_was_kept(example, capsys, options, kept):
    example("caption").main(options)
    question, whole, pruned = capsys.readouterr().out.splitlines()
    assert question.startswith("which digit is ")
    assert re.fullmatch(r"all tokens: '\d', [\d.]+ ms", whole)
    assert re.fullmatch(rf"\w+, {kept} tokens: '\d', [\d.]+ ms", pruned)


def test_caption_loads_any_model_of_transformers_by_name(example, capsys):
    from budgetprune.training.base_model import CHECKPOINTS

    example("caption").main(["--model", str(CHECKPOINTS / "digits-llava"), "--question", "which digit is red"])
    assert "visionzip, 16 tokens" in capsys.readouterr().out


def test_a_method_of_ones_own_is_measured_beside_the_floors(example, tmp_path, capsys):
    example("new_method").main(["--samples", "6", "--keep", "5", "--out", str(tmp_path / "out")])
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["none", "contrast", "uniform", "random"]
    assert [row["kept_mean"] for row in rows] == [64, 5, 5, 5] and "| contrast | 5 |" in capsys.readouterr().out


@torch.no_grad()
def test_a_family_from_outside_is_pruned_like_the_others(example, capsys):
    from tiny import IMAGE_TOKEN, make_batch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    module = example("new_family")
    module.main([])
    assert capsys.readouterr().out.count("kept patches") == 4
    model, batch = module.small(), make_batch()
    whole = model(**batch).logits
    features = model.model.get_image_features(batch["pixel_values"]).pooler_output
    for method in ("visionzip", "divprune", "fastv", "adaptive"):
        with budgetprune.prune(model, method, keep=16):
            assert torch.equal(model(**batch).logits, whole), method
    batch = make_batch(text=(4, 4))
    with budgetprune.prune(model, "divprune", keep=6) as pruning:
        logits, kept = model(**batch).logits, pruning.plan.kept.long()
    is_image = batch["input_ids"] == IMAGE_TOKEN
    stays = ~is_image | (is_image.cumsum(1) <= 6)
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
    images = {"image": BaseModelOutputWithPooling(pooler_output=chosen)}
    expected = model(input_ids=batch["input_ids"][stays].view(2, -1), mm_encoder_outputs=images).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [[], ["--compile"]], ids=str)
def test_the_exported_vision_side_answers_through_the_stock_model(example, tmp_path, capsys, options):
    if options and shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    example("export_vision").main([*options, "--out", str(tmp_path / "out")])
    answer = re.search(r"which digit is \w+: (\d) \(right: (\d)\)", capsys.readouterr().out)
    assert answer[1] == answer[2] and (tmp_path / "out" / "vision.pt2").is_file()


def test_export_refuses_what_would_answer_wrongly(example, capsys):
    with pytest.raises(SystemExit):
        example("export_vision").main(["--method", "dart"])
    assert "keeps original position ids" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["visionzip", "fastv"])
def test_later_turns_feed_their_words_only_and_are_answered(example, capsys, method):
    example("multi_turn").main(["--method", method])
    *turns, kept = capsys.readouterr().out.splitlines()
    new = [int(re.search(r"(\d+) of them new", turn)[1]) for turn in turns]
    assert len(turns) == 3 and new[1:] == [6, 6] and kept == "image tokens kept: 24"
    assert sum(re.search(r": (\d) \(right: (\d)\)", turn)[1] == turn.split("right: ")[1][0] for turn in turns) >= 2


@torch.no_grad()
def test_trainer_adapter_comes_back_from_its_folder_to_the_bit(example, tmp_path, capsys):
    from budgetprune.tasks.digits import draw
    from budgetprune.training import batch_inputs, load_base

    with torch.enable_grad():
        trained, reloaded = example("train_pruner_trainer").main(
            ["--steps", "2", "--batch-size", "2", "--images", "2", "--out", str(tmp_path / "out")])
    assert "reloaded from" in capsys.readouterr().out
    batch = batch_inputs(draw("test", 2, seed=1), load_base()[1])
    assert torch.equal(trained.to("cpu")(**batch).logits, reloaded(**batch).logits)
    assert reloaded.get_base_model().budget_pruner.plan.counts() == [8, 8]
    changed = [name for name, value in trained.named_parameters() if value.requires_grad]
    assert any("budget_pruner" in name for name in changed) and any("lora" in name for name in changed)


def test_readme_lists_every_example():
    readme = (ROOT / "README.md").read_text()
    for name in SCRIPTS:
        assert f"(examples/{name}.py)" in readme, name
