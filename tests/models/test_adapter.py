"""Saving and loading a pruner, alone and with LoRA in one peft adapter."""

import json

import pytest
import torch
from tiny import make_batch, make_llava

import budgetprune


def shaken(model):
    """A pruned model whose controller is far from its initial state."""
    budgetprune.prune(model, "adaptive", keep=5, conditioning="concat", tau=2.0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.budget_pruner.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def test_a_saved_pruner_prunes_the_same(tmp_path):
    batch, model = make_batch(), shaken(make_llava())
    expected = model(**batch).logits
    budgetprune.Pruning(model).save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["budgetprune_config.json", "budgetprune_model.safetensors"]
    fresh = make_llava()
    pruning = budgetprune.from_pretrained(fresh, tmp_path)
    assert torch.equal(fresh(**batch).logits, expected)
    assert pruning.selector.options()["conditioning"] == "concat"
    pruning.set_keep(2)
    fresh(**batch)
    assert pruning.plan.counts() == [2, 2]


@torch.no_grad()
def test_methods_without_weights_save_their_options(tmp_path):
    model = make_llava()
    budgetprune.prune(model, "fastv", keep=0.25, layer=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "budgetprune_config.json").read_text())["options"] == {"layer": 3}
    assert not (tmp_path / "budgetprune_model.safetensors").exists()
    pruning = budgetprune.from_pretrained(make_llava(), tmp_path)
    assert pruning.selector.layer == 3 and pruning.model.budget_pruner.budget.keep == 0.25


def test_a_pruner_for_another_model_is_refused_and_leaves_it_unpruned(tmp_path):
    model = shaken(make_llava())
    budgetprune.Pruning(model).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "budgetprune_config.json").read_text())
    config["options"]["conditioning"] = "add"
    (tmp_path / "budgetprune_config.json").write_text(json.dumps(config))
    other = make_llava()
    with pytest.raises(ValueError, match="was trained for another model"):
        budgetprune.from_pretrained(other, tmp_path)
    assert "budget_pruner" not in other._modules
    with pytest.raises(FileNotFoundError, match="no budgetprune_config.json in"):
        budgetprune.from_pretrained(other, tmp_path / "nowhere")


GOOD = {"method": "fastv", "options": {"layer": 2}, "keep": 4, "train_keep": None, "positions": "original"}
PAIR = {**GOOD, "method": "uniform+fastv", "keep": [8, 4]}


@pytest.mark.parametrize("written, match", [
    ("", "Expecting value"),
    ('{"method": "fastv", "opt', "Unterminated string"),
    (b"\xff\xfe", "utf-8"),
    (["fastv"], r"it must hold an object, got \['fastv'\]"),
    ({}, "it has no method, options, keep, train_keep"),
    ({key: value for key, value in GOOD.items() if key != "options"}, "it has no options"),
    ({**GOOD, "method": "fastv2"}, "unknown method 'fastv2'; known: adaptive"),
    ({**GOOD, "method": 3}, "method must be a string, got 3"),
    ({**GOOD, "options": None}, "options must be an object for each of fastv, got None"),
    ({**GOOD, "options": {"depth": 2}}, r"fastv takes the options \['layer'\], got \['depth'\]"),
    ({**GOOD, "options": {"layer": "2"}}, "layer must be an int, got '2'"),
    ({**GOOD, "train_keep": 5}, "train_keep must be two ints"),
    ({**PAIR, "options": {"layer": 2}}, "options must be an object for each of uniform, fastv, got {'layer': 2}"),
    ({**PAIR, "options": [{}]}, "options must be an object for each of uniform, fastv"),
    ({**PAIR, "options": [{}, {"layer": 2}], "method": "uniform+slowv"}, "unknown method 'slowv'"),
], ids=str)
def test_a_broken_configuration_is_named_and_leaves_the_model_unpruned(llava, tmp_path, written, match):
    file = tmp_path / "budgetprune_config.json"
    if isinstance(written, bytes):
        file.write_bytes(written)
    else:
        file.write_text(written if isinstance(written, str) else json.dumps(written))
    with pytest.raises(ValueError, match=f"{file} is not what save_pretrained writes: .*{match}"):
        budgetprune.from_pretrained(llava, tmp_path)
    assert "budget_pruner" not in llava._modules


@pytest.mark.parametrize("config", [GOOD, {**PAIR, "options": [{}, {"layer": 2}]}], ids=str)
def test_a_whole_configuration_is_read(llava, tmp_path, config):
    (tmp_path / "budgetprune_config.json").write_text(json.dumps(config))
    with budgetprune.from_pretrained(llava, tmp_path):
        assert llava.budget_pruner.llm.selector.layer == 2


@pytest.mark.parametrize("model", ["llava", torch.nn.Linear(2, 2)], ids=repr)
def test_a_saved_pruner_enters_no_model_of_another_kind(tmp_path, model):
    (tmp_path / "budgetprune_config.json").write_text(json.dumps(GOOD))
    with pytest.raises(TypeError, match="model must be one of LlavaForConditionalGeneration"):
        budgetprune.from_pretrained(model, tmp_path)


def test_lora_and_pruner_live_in_one_adapter(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file

    batch = make_batch(labels=True)
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["budget_pruner"])
    model = get_peft_model(shaken(make_llava()), lora)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()(**batch).loss.backward()
    optimizer.step()
    names = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("lora_" in name for name in names) and any("budget_pruner" in name for name in names)
    model.eval()
    with torch.no_grad():
        expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_" in name for name in saved) and any("budget_pruner" in name for name in saved)

    fresh = make_llava()
    budgetprune.prune(fresh, "adaptive", keep=5, conditioning="concat", tau=2.0)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
        assert expected.shape[1] < batch["input_ids"].shape[1]
        tokens = loaded.generate(**{k: v for k, v in batch.items() if k != "labels"}, max_new_tokens=3, do_sample=False)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    assert tokens.shape[1] == batch["input_ids"].shape[1] + 3
    budgetprune.unprune(merged)
    assert "budget_pruner" not in merged._modules


def test_missing_or_torn_weights_are_an_error_and_leave_the_model_unpruned(tmp_path):
    budgetprune.Pruning(shaken(make_llava())).save_pretrained(tmp_path)
    weights, model = tmp_path / "budgetprune_model.safetensors", make_llava()
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(Exception, match="(?i)header|incomplete|deserializ"):
        budgetprune.from_pretrained(model, tmp_path)
    assert "budget_pruner" not in model._modules
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no budgetprune_model.safetensors in .*adaptive is trained"):
        budgetprune.from_pretrained(model, tmp_path)
    assert "budget_pruner" not in model._modules
