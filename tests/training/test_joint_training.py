"""Tokens and layers learnt in one loop: what is drawn, what is trained, that a run resumes bit for bit and loads."""

import signal
from dataclasses import replace

import pytest
import torch
from families import make_model
from tiny import answered, make_batch, make_llava

from budgetprune.cost import VlmShape
from budgetprune.training.joint import joint_from_pretrained, spend, train_joint
from budgetprune.training.joint_config import JointConfig

CONFIG = JointConfig(steps=4, batch_size=2, save_every=2, share_min=0.6, share_max=1.2, text_tokens=8,
                     options={"tau": 1.0}, depth_options={"prefix": 1}, learning_rate=1e-2, model_learning_rate=1e-3)
LORA = {"tune": "lora", "lora_rank": 2}


class Stream(torch.utils.data.Dataset):
    """Samples of four steps, the same every time; Ctrl-C comes while sample `stop_at` is fetched, a step ahead."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        return {name: value[0] for name, value in answered(make_batch(text=(5,), seed=index)).items()}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def removed(*prunings):
    for pruning in prunings:
        if pruning is not None:
            pruning.remove()


@pytest.mark.parametrize("options", [{"tune": "frozen"}, LORA, {"tune": "full"},
                                     {**LORA, "depth_options": {"form": "heads", "rank": 2, "prefix": 1}}],
                         ids=["frozen", "lora", "full", "lora-heads"])
def test_a_run_trains_what_it_names_and_nothing_else_and_loads_as_it_was(tmp_path, options):
    config, model, batch = replace(CONFIG, **options), make_llava(), make_batch()
    before = state(model)
    tokens, depth = train_joint(model, Stream(), tmp_path, config)
    spend(model, config.pairs(VlmShape.from_config(model.config), 0.6, 1)[0])
    with torch.no_grad():
        expected, plan = model(**batch).logits, depth.plan
    after = state(model)
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    named = {name.replace(".base_layer", "") for name in after if not torch.equal(after[name], before.get(
        name.replace(".base_layer", ""), after[name] + 1))}
    assert {name for name in named if name.startswith("budget_")} == \
        {name for name in after if name.startswith("budget_")}
    assert not any("vision_tower" in name for name in named), "the tower stays as it is"
    if config.tune == "frozen":
        assert not changed and not (tmp_path / "tuned_model.safetensors").exists()
    if config.tune == "full":
        assert {name for name in before if "language_model" in name or "projector" in name} == changed - {
            "lm_head.weight"} and "lm_head.weight" in changed
    if config.tune == "lora":
        assert any("lora_B" in name and value.abs().max() > 0 for name, value in after.items())
    fresh = make_llava()
    again = joint_from_pretrained(fresh, tmp_path)
    spend(fresh, config.pairs(VlmShape.from_config(fresh.config), 0.6, 1)[0])
    with torch.no_grad():
        assert torch.equal(fresh(**batch).logits, expected) and torch.equal(again[1].plan.runs, plan.runs)
    assert not any(p.requires_grad for name, p in fresh.named_parameters() if not name.startswith("budget_"))
    removed(*again)
    assert "budget_depth" not in fresh._modules and "budget_pruner" not in fresh._modules
    assert (tmp_path / "train_log.jsonl").is_file()
    assert not (tmp_path / "checkpoints").exists()


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    whole, resumed = make_llava(), make_llava()
    train_joint(whole, Stream(), tmp_path / "whole", CONFIG)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4"):
        train_joint(make_llava(), Stream(stop_at=4), tmp_path / "broken", CONFIG)
    steps = []
    train_joint(resumed, Stream(), tmp_path / "broken", CONFIG, tell=lambda step, values: steps.append(step))
    assert min(steps) == 3
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value), name
    loaded, steps = make_llava(), []
    train_joint(loaded, Stream(), tmp_path / "broken", CONFIG, tell=lambda step, values: steps.append(step))
    assert steps == [] and torch.equal(loaded.lm_head.weight, whole.lm_head.weight), "finished, it only loads"
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        train_joint(make_llava(), Stream(), tmp_path / "whole", replace(CONFIG, seed=1))


@pytest.mark.parametrize("method, depth", [("adaptive", "adallava"), ("adaptive", None), (None, "adallava")])
def test_every_step_spends_a_budget_that_it_drew(tmp_path, method, depth):
    model, seen = make_llava(), []
    shape = VlmShape.from_config(model.config)
    config = replace(CONFIG, method=method, depth=depth, options=CONFIG.options if method else {},
                     depth_options=CONFIG.depth_options if depth else {}, share_min=0.7, seed=1)
    handle = model.model.language_model.register_forward_hook(lambda *_: seen.append(
        (model.budget_pruner.budget.keep if method else 16, model.budget_depth.last_plan() if depth else None)))
    tokens, sparing = train_joint(model, Stream(), tmp_path, config)
    handle.remove()
    drawn = [config.drawn(shape, step, 1) for step in range(4)]
    assert len(seen) == 4 and len({(pair.keep, pair.layers) for pair in drawn}) > 1
    for (keep, plan), pair in zip(seen, drawn):
        assert keep == pair.keep and pair.share <= config.share_max
        assert pair.layers == 4 if plan is None else plan.runs.sum(1).tolist() == [pair.layers] * 2
    assert (tokens is None) == (method is None) and (sparing is None) == (depth is None)
    assert all(pair.keep == 16 for pair in drawn) if method is None else all(pair.keep >= 2 for pair in drawn)


def test_draws_cover_the_range_and_depend_on_seed_and_step_alone():
    shape = VlmShape.from_config(make_llava().config)
    drawn = [CONFIG.drawn(shape, step, 1) for step in range(200)]
    assert drawn == [CONFIG.drawn(shape, step, 1) for step in range(200)]
    # With one layer the budget has tokens to spare: another layer is paid for.
    assert {pair.layers for pair in drawn} == {2, 3, 4} and len({pair.keep for pair in drawn}) > 10
    assert any(pair.keep == 16 and pair.layers == 4 for pair in drawn)
    assert drawn != [replace(CONFIG, seed=1).drawn(shape, step, 1) for step in range(200)]


@pytest.mark.parametrize("arguments, error, match", [
    ({"method": None, "depth": None}, ValueError, "method or depth must be given"),
    ({"method": "uniform"}, ValueError, r"method must be None or a trained one \(adaptive"),
    ({"depth": "x"}, ValueError, "depth must be one of 'adallava', got 'x'"),
    ({"tune": "x"}, ValueError, "tune must be one of 'frozen', 'lora', 'full', got 'x'"),
    ({"share_min": 0.9, "share_max": 0.5}, ValueError, "share_min must be at most share_max, got 0.9 and 0.5"),
    ({"share_max": 3}, ValueError, r"share_max must be in \[0, 2\], got 3"),
    ({"steps": 0}, ValueError, "steps must be at least 1"), ({"noise": "x"}, TypeError, "noise must be a number"),
])
def test_wrong_configurations_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        JointConfig(**arguments)


@pytest.mark.parametrize("make, changes, match", [
    (make_llava, {"method": None, "options": {}, "share_min": 0.1},
     "share_min must be larger: flops must pay for 16 image tokens in 1 layers"),
    (make_llava, {"depth_options": {"prefix": 99}}, "prefix must be"),
    (lambda: make_model("llava_next"), {}, "model must have as many tokens for every image, .* LlavaNextForCond"),
    (lambda: make_model("paligemma"), {}, "PaliGemma"),
], ids=["budget", "prefix", "crops", "prefix-lm"])
def test_what_cannot_be_trained_costs_neither_the_run_before_nor_the_model(tmp_path, make, changes, match):
    (tmp_path / "train_log.jsonl").write_text("{}")
    (tmp_path / "budgetprune_config.json").write_text("{}")
    model = make()
    with pytest.raises((ValueError, TypeError), match=match):
        train_joint(model, Stream(), tmp_path, replace(CONFIG, **changes), resume=False)
    assert len(list(tmp_path.iterdir())) == 2 and not {"budget_pruner", "budget_depth"} & set(model._modules)
