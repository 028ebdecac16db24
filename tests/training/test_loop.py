"""Training a pruner: what is written, that it resumes bit for bit, and that it refuses what it cannot do."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from families import make_model
from tiny import make_batch, make_llava

import budgetprune
from budgetprune.training.config import TrainConfig
from budgetprune.training.loop import train_pruner

CONFIG = TrainConfig(steps=6, batch_size=2, k_min=2, k_max=6, save_every=2, learning_rate=1e-2, options={"tau": 1.0})


class Stream(torch.utils.data.Dataset):
    """Six steps of two samples, the same every time; Ctrl-C comes while sample `stop_at` is fetched, a step ahead."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        return {name: value[0] for name, value in make_batch(text=(5,), seed=index, labels=True).items()}


def weights(model):
    return {name: value.clone() for name, value in model.budget_pruner.state_dict().items()}


def test_a_run_writes_a_pruner_that_loads_and_removes_its_checkpoints(tmp_path):
    model, seen = make_llava(), []
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = train_pruner(model, Stream(), tmp_path, CONFIG, tell=lambda step, values: seen.append(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "budgetprune_config.json", "budgetprune_model.safetensors", "train_config.json", "train_log.jsonl"]
    assert max(seen) == 6 and TrainConfig.read(tmp_path / "train_config.json") == CONFIG
    trained = weights(model)
    pruning.remove()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items()), "the model stays frozen"
    fresh = make_llava()
    budgetprune.from_pretrained(fresh, tmp_path)
    assert all(torch.equal(value, trained[name]) for name, value in weights(fresh).items())
    assert not any(torch.equal(value, torch.zeros_like(value)) for value in trained.values())


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    whole = make_llava()
    train_pruner(whole, Stream(), tmp_path / "whole", CONFIG)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        train_pruner(make_llava(), Stream(stop_at=6), tmp_path / "broken", CONFIG)
    assert not (tmp_path / "broken" / "budgetprune_model.safetensors").exists()
    resumed, steps = make_llava(), []
    train_pruner(resumed, Stream(), tmp_path / "broken", CONFIG, tell=lambda step, values: steps.append(step))
    assert min(steps) == 4
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_pruner(make_llava(), Stream(stop_at=6), tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-5" / "optimizer.pt").write_bytes(b"half")
    steps = []
    train_pruner(make_llava(), Stream(), tmp_path, CONFIG, tell=lambda step, values: steps.append(step))
    assert min(steps) == 4 and max(steps) == 6


def test_another_configuration_in_the_same_folder_is_refused(tmp_path):
    train_pruner(make_llava(), Stream(), tmp_path, CONFIG)
    other = TrainConfig(**{**CONFIG.__dict__, "k_max": 5})
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        train_pruner(make_llava(), Stream(), tmp_path, other)
    train_pruner(make_llava(), Stream(), tmp_path, other, resume=False)
    assert json.loads((tmp_path / "budgetprune_config.json").read_text())["train_keep"] == [2, 5]


def test_a_finished_run_is_loaded_not_repeated_and_a_new_one_hides_the_old_weights(tmp_path):
    train_pruner(make_llava(), Stream(), tmp_path, CONFIG)
    before, steps = (tmp_path / "budgetprune_model.safetensors").read_bytes(), []
    train_pruner(make_llava(), Stream(), tmp_path, CONFIG, tell=lambda step, values: steps.append(step))
    assert steps == [] and (tmp_path / "budgetprune_model.safetensors").read_bytes() == before
    longer = TrainConfig(**{**CONFIG.__dict__, "steps": 5})
    with pytest.raises(KeyboardInterrupt):
        train_pruner(make_llava(), Stream(stop_at=4), tmp_path, longer, resume=False)
    assert not (tmp_path / "budgetprune_model.safetensors").exists(), "old weights may not pass for new"


def test_lora_is_trained_with_the_pruner_and_saved_in_one_adapter(tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    config = TrainConfig(**{**CONFIG.__dict__, "lora_rank": 2})
    model = make_llava()
    train_pruner(model, Stream(), tmp_path, config)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in saved.items())
    assert any("budget_pruner" in name for name in saved)
    assert (tmp_path / "budgetprune_config.json").is_file()
    fresh, again, batch = make_llava(), make_llava(), make_batch()
    budgetprune.from_pretrained(fresh, tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    train_pruner(again, Stream(), tmp_path, config)  # finished: it is loaded, LoRA too
    with torch.no_grad():
        expected = model(**batch).logits
        assert expected.shape[1] < batch["input_ids"].shape[1]
        assert torch.equal(loaded(**batch).logits, expected) and torch.equal(again(**batch).logits, expected)


@pytest.mark.parametrize("arguments, error, match", [
    ({"method": "uniform"}, ValueError, r"method must be a trained one \(adaptive, adaptive_query, .*\), got uniform"),
    ({"method": "nope"}, ValueError, "unknown method 'nope'; known: adaptive"),
    ({"method": None}, TypeError, "method must be a name of a method, got None"),
    ({"options": {"tau": "x"}}, TypeError, "tau must be a number, got 'x'"),
    ({"options": {"depth": 2}}, ValueError, r"adaptive takes the options .*, got \['depth'\]"),
    ({"k_max": 2.5}, TypeError, "k_max must be an int, got 2.5"),
    ({"steps": "9"}, TypeError, "steps must be an int, got '9'"),
    ({"lora_rank": True}, TypeError, "lora_rank must be an int, got True"),
    ({"noise": "all"}, TypeError, "noise must be a number, got 'all'"),
    ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a finite number, got nan"),
    ({"seed": -1}, ValueError, r"seed must be in \[0, 4294967295\], got -1"),
    ({"seed": "a"}, TypeError, "seed must be an int, got 'a'"),
])
def test_what_cannot_be_trained_is_refused_before_a_run_begins(arguments, error, match):
    with pytest.raises(error, match=match):
        TrainConfig(**arguments)


def test_options_may_hold_what_prune_takes_beside_those_of_the_method():
    assert TrainConfig(options={"positions": "compact", "tau": 2.0}).options["positions"] == "compact"


@pytest.mark.parametrize("field, value, match", [
    ("k_min", 0, "k_min must be at least 1, got 0"), ("k_min", 25, "k_min and k_max must satisfy"),
    ("steps", 0, "steps must be at least 1, got 0"), ("lora_rank", -1, "lora_rank"),
    ("learning_rate", 0.0, "learning_rate must be positive"), ("warmup", 1.0, r"warmup must be in \[0, 1\)"),
])
def test_a_bad_configuration_is_refused_by_name(field, value, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("changes, match", [
    ({"options": {"use_cls": True}}, "use_cls must be False in LlavaForConditionalGeneration"),
    ({"k_max": 17}, "k_max must be at most N=16, the image tokens of this model, got 17"),
])
def test_what_its_model_refuses_leaves_the_finished_run_alone(tmp_path, changes, match):
    train_pruner(make_llava(), Stream(), tmp_path, CONFIG)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = make_model("llava_siglip")
    with pytest.raises(ValueError, match=match):
        train_pruner(model, Stream(), tmp_path, replace(CONFIG, **changes), resume=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "budget_pruner" not in model._modules
