"""Whole runs on conversations: what they write, that they go on to the same bits, and what stops them."""

import json
import shutil
import signal
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import run_ranks
import torch
from conversation_files import digits_rows
from run_ranks import CASES, config_of, load, train

import budgetprune
from budgetprune import tasks
from budgetprune.evaluation.config import EvalConfig
from budgetprune.evaluation.prompts import prepare
from budgetprune.evaluation.run import cells_of, entered
from budgetprune.models.adapter import load_adapter
from budgetprune.training import run, run_config
from budgetprune.training.base_model import CHECKPOINTS, build_base
from budgetprune.training.loop import attach
from budgetprune.training.run import train_on_conversations
from budgetprune.training.run_config import RunConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits_rows(folder, broken=(5,))
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Every case, run once without a break: {case: (weights, rows of the log, skipped, folder)}."""
    folder = tmp_path_factory.mktemp("whole")
    return {case: (*train(data, folder / case, case)[:3], folder / case) for case in CASES}


def same_bits(ours, expected):
    assert ours.keys() == expected.keys() and len(ours)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def skipped_in(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_a_run_writes_a_pruner_and_what_it_skipped(data, whole):
    weights, rows, skipped, folder = whole["pruner"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "budgetprune_config.json", "budgetprune_model.safetensors", "run_config.json", "skipped.jsonl",
        "train_config.json", "train_log.jsonl"]
    assert len(rows) == 4 and all(name.startswith("budget_pruner.") for name in weights)
    entries = skipped_in(folder)
    assert skipped == len(entries) > 0 and {entry["id"] for entry in entries} == {"canvas-5"}
    assert all(entry["step"] == entry["position"] // 4 + 1 for entry in entries)
    model, _ = load(torch.float32)
    start = {name: p.clone() for name, p in model.named_parameters()}
    pruning = budgetprune.from_pretrained(model, folder)
    same_bits({name: p for name, p in pruning.model.named_parameters() if name in weights}, weights)
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters() if name in start)


@pytest.mark.parametrize("case", ["pruner", "lora", "inside", "quecc"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(data, whole, tmp_path, case):
    weights, rows, skipped, _ = whole[case]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 4"):
        train(data, tmp_path, case, stop_at=3)
    assert not (tmp_path / "budgetprune_model.safetensors").exists()
    steps = []
    ours, log, count, _ = train(data, tmp_path, case, tell=lambda step, values: steps.append(step))
    assert steps[0] == 0 and steps[1] == 4
    same_bits(ours, weights)
    assert [row["loss"] for row in log] == [row["loss"] for row in rows] and count == skipped
    assert skipped_in(tmp_path) == skipped_in(whole[case][3])


def test_a_run_that_is_killed_repeats_its_steps_and_names_nothing_twice(data, whole, tmp_path):
    """Killed behind step 3, it goes on behind step 2, its last checkpoint; optimiser and log are of there."""
    def killed(step, values):
        if step == 4 and not values:
            raise SystemExit

    with pytest.raises(SystemExit):
        train(data, tmp_path, "pruner", tell=killed)
    assert skipped_in(tmp_path)[-1]["step"] > 2, "the test must have something to take back"
    ours, _, skipped, _ = train(data, tmp_path, "pruner")
    same_bits(ours, whole["pruner"][0])
    assert skipped_in(tmp_path) == skipped_in(whole["pruner"][3]) and skipped == whole["pruner"][2]


def test_a_signal_of_the_cluster_saves_and_stops_as_ctrl_c_does(data, tmp_path):
    def told(step, values):
        if step == 2 and not values:  # the launcher passes on what the terminal sent: once is meant
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4"):
        train(data, tmp_path, "pruner", tell=told)
    assert (tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").is_file()


@pytest.mark.parametrize("changes", [{"micro_batch": 1, "workers": 1}, {"micro_batch": 4, "checkpointing": False}],
                         ids=lambda changes: "-".join(changes))
def test_how_a_step_is_computed_does_not_change_it(data, whole, tmp_path, changes):
    weights, rows, skipped, _ = whole["lora"]
    ours, log, count, _ = train(data, tmp_path, "lora", **changes)
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    assert count == skipped
    for name in weights:
        if not name.endswith("head.2.bias"):  # no gradient but rounding, which Adam makes large
            torch.testing.assert_close(ours[name], weights[name], atol=1e-4, rtol=1e-3, msg=name)


def test_lora_learns_from_rows_without_an_image_and_the_pruner_alone_leaves_them_out(data, whole, caplog, tmp_path):
    for case, wanted in (("pruner", False), ("lora", True)):
        order_of = config_of(data, case)
        assert order_of.with_text is wanted
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        train(data, tmp_path, "pruner", stop_at=1)
    assert "2 rows without an image are left out" in caplog.text


def test_projector_and_pruner_are_one_adapter_that_evaluation_loads(data, whole):
    from peft import PeftModel

    weights, _, _, folder = whole["question"]
    moved = {name: value for name, value in weights.items() if "multi_modal_projector" in name}
    assert len(moved) == 4
    start = dict(load(torch.float32)[0].named_parameters())
    model, _ = load(torch.float32)
    budgetprune.from_pretrained(model, folder)
    loaded = dict(PeftModel.from_pretrained(model, folder).named_parameters())
    for name, value in moved.items():
        own = next(n for n in loaded if n.endswith(name.removeprefix("model.")))
        assert torch.equal(loaded[own], value)
        assert not torch.equal(start[name.replace("modules_to_save.default.", "")], value)


@pytest.mark.parametrize("case", ["lora", "question"])
def test_evaluation_gives_every_cell_its_own_weights_and_the_model_back(data, whole, case):
    folder = whole[case][3]
    method = run_ranks.CASES[case]["pruner"].method
    model, processor = load(torch.float32)
    own = dict(model.named_modules())
    config = EvalConfig(("none", method, "uniform"), (4, 8), pruners={method: folder})
    inputs = prepare(processor, tasks.build("digits").samples("test", 2, 0), model)

    cells = {(cell.method, cell.keep): cell for cell in cells_of(config, 64, model)}

    def logits(method, keep):
        with entered(model, cells[method, keep], config) as (active, _), torch.no_grad():
            return active(**inputs).logits

    before = [logits("none", 64), logits("uniform", 8)]
    trained = [logits(method, keep) for keep in (4, 8, 4)]
    assert torch.equal(trained[0], trained[2]) and trained[0].shape != trained[1].shape
    after = [logits("none", 64), logits("uniform", 8)]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert all(module is own[name] for name, module in model.named_modules()) and len(own) == len(
        list(model.named_modules()))
    again, _ = load(torch.float32)
    budgetprune.from_pretrained(again, folder, keep=8)
    start = again(**inputs).logits
    assert not torch.allclose(start, trained[1], atol=1e-6), "LoRA and projector make no difference"


def test_an_adapter_of_another_model_leaves_the_model_as_it_was(whole, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(whole["lora"][3], tmp_path / "wrong")
    path = folder / "adapter_model.safetensors"
    save_file({name: value.repeat(2, 1) if "lora_B" in name else value for name, value in load_file(path).items()},
              path, {"format": "pt"})
    model, processor = load(torch.float32)
    inputs = prepare(processor, tasks.build("digits").samples("test", 2, 0), model)
    own, before = dict(model.named_modules()), model(**inputs).logits
    config = EvalConfig(("adaptive",), (4,), pruners={"adaptive": folder})
    with pytest.raises(RuntimeError, match="size mismatch"), entered(model, cells_of(config, 64, model)[0], config):
        pass
    assert dict(model.named_modules()) == own and torch.equal(model(**inputs).logits, before)


def test_a_finished_run_loads_all_that_it_trained(data, whole):
    for case in ("lora", "question"):
        *_, folder = whole[case]
        model = train(data, folder, case)[3]
        fresh, processor = load(torch.float32)
        budgetprune.from_pretrained(fresh, folder)
        inputs = prepare(processor, tasks.build("digits").samples("test", 2, 0), fresh)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, load_adapter(fresh, folder)(**inputs).logits)


@pytest.mark.parametrize("case, method, trained", [
    ("inside", "adaptive", {"budget_pruner.selector.token", "budget_pruner.selector.controller"}),
    ("quecc", "quecc", {"budget_pruner.selector"})])
def test_option_a_and_a_compressor_learn_from_conversations(data, whole, case, method, trained):
    """Every trained part of them moves, and what is written prunes a new model to the same weights."""
    weights, rows, _, folder = whole[case]
    assert len(rows) == 4 and all(isfinite(row["loss"]) for row in rows)
    model, _ = load(torch.float32)
    _, pruning = attach(model, CASES[case]["pruner"])  # as the run began
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    moved = {name for name, value in weights.items() if not torch.equal(start[name], value)}
    assert all(value.isfinite().all() for value in weights.values())
    assert moved == start.keys() and all(any(name.startswith(part) for name in moved) for part in trained)
    pruning.remove()
    loaded = budgetprune.from_pretrained(model, folder)
    same_bits({name: p for name, p in loaded.model.named_parameters() if name in weights}, weights)


def test_half_precision_trains_what_it_trains_in_float32(data, whole, tmp_path):
    weights, rows, _, model = train(data, tmp_path, "lora", dtype="bf16", train_projector=True)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in weights.items())
    assert model.model.language_model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    exact = whole["lora"][1][0]["loss"]
    assert rows[0]["loss"] == pytest.approx(exact, rel=0.02) and rows[0]["loss"] != exact


def test_what_is_trained_on_is_drawn_sample_by_sample(data, monkeypatch, tmp_path):
    """Counts of one step differ from sample to sample, and are those of the range."""
    seen = []
    real = budgetprune.models.pruner.Pruner.counts

    def counts(self, tokens, training=False):
        seen.append(real(self, tokens, training))
        return seen[-1]

    monkeypatch.setattr(budgetprune.models.pruner.Pruner, "counts", counts)
    train(data, tmp_path, "pruner")
    drawn = [count for call in seen for count in call]
    assert len(drawn) == 16 and min(drawn) >= 4 and max(drawn) <= 16 and len(set(drawn)) > 5
    assert any(len(set(call)) > 1 for call in seen)


def test_too_much_that_cannot_be_read_stops_the_run(tmp_path):
    digits_rows(tmp_path, broken=(0, 2, 5, 7, 9))
    with pytest.raises(ValueError, match=r"max_skipped allows 20.00% of the samples to be skipped, got \d+ of 16; .*"
                                         r"skipped.jsonl names each; the last, canvas-\d: image"):
        train(tmp_path, tmp_path / "out", "pruner", max_skipped=0.2)
    assert len(skipped_in(tmp_path / "out")) > 0.2 * 16


def test_another_run_in_the_folder_is_refused_and_what_changes_nothing_is_not(data, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole["pruner"][3], folder)
    for changes in ({"max_length": 99}, {"dtype": "bf16"}, {"pruner": replace(run_ranks.PRUNER, k_max=12)}):
        with pytest.raises(ValueError, match="holds a run with another configuration"):
            train(data, folder, "pruner", **changes)
    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    steps = []
    train_on_conversations(load, config_of(moved, "pruner", micro_batch=1, workers=1), folder,
                           tell=lambda step, values: steps.append(step))
    assert steps == [], "a finished run is loaded"
    rows = json.loads((moved / "data.json").read_text())
    (moved / "data.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        train(moved, folder, "pruner")
    (folder / "run_config.json").unlink()
    with pytest.raises(ValueError, match="holds a run of another kind"):
        train(data, folder, "pruner")


def test_an_epoch_is_as_many_steps_as_the_data_has_samples(data):
    config = RunConfig("m", "d", epochs=2.0, pruner=run_ranks.PRUNER)
    assert config.resolved(12, 10).pruner.steps == 5 and config.resolved(12, 10).records == 12
    assert replace(config, epochs=0.01).resolved(12, 10).pruner.steps == 1
    assert replace(config, epochs=None).resolved(12, 10).pruner.steps == run_ranks.PRUNER.steps


@pytest.mark.parametrize("changes, error, match", [
    ({"dtype": "fp16"}, ValueError, "dtype must be one of 'auto', 'bf16', 'fp32', got 'fp16'"),
    ({"report_to": "mail"}, ValueError, "report_to must be one of 'none', 'tensorboard', 'wandb', got 'mail'"),
    ({"report_to": "wandb"}, ValueError, "report_to wandb needs a package that is not installed: pip install wandb"),
    ({"deepspeed": "zero2.json"}, ValueError, "deepspeed must be installed for a DeepSpeed configuration"),
    ({"deepspeed": "zero2.json", "fsdp": True}, ValueError, "fsdp and deepspeed both divide the weights"),
    ({"micro_batch": 0}, ValueError, "micro_batch must be at least 1, got 0"),
    ({"max_skipped": 1.5}, ValueError, r"max_skipped must be in \[0, 1\], got 1.5"),
    ({"fsdp": "yes"}, TypeError, "fsdp must be True or False, got 'yes'"),
    ({"epochs": 0}, ValueError, "epochs must be positive, got 0"),
    ({"model_learning_rate": 0}, ValueError, "model_learning_rate must be positive, got 0"),
])
def test_a_bad_configuration_is_refused_by_name_before_anything_is_loaded(monkeypatch, changes, error, match):
    monkeypatch.setattr(run_config, "find_spec", lambda name: None)
    with pytest.raises(error, match=match):
        RunConfig("m", "d", **changes)


@pytest.mark.parametrize("changes, error, match", [
    ({"images": "nowhere"}, FileNotFoundError, "images must be a folder, got nowhere, which is none"),
    ({"data": ""}, ValueError, "data must be a name or a path, got ''"),
])
def test_what_is_not_there_is_said_before_a_model_is_loaded_or_a_file_written(data, tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        train_on_conversations(None, replace(config_of(data, "pruner"), **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_model_or_the_processes_cannot_do_is_said(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="fsdp must have several processes to divide the weights over, got one"):
        train(data, tmp_path / "fsdp", "pruner", fsdp=True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size must be a multiple of processes x micro_batch, 3 x 2, got 4"):
        train(data, tmp_path / "three", "pruner")
    assert not (tmp_path / "three").exists()


def test_models_that_cannot_be_trained_are_refused():
    from families import make_model

    with pytest.raises(ValueError, match="model must have causal attention"):
        run.check_model(make_model("paligemma"), RunConfig("m", "d"))
    assert run.projector_name(make_model("qwen2_5_vl")) == "merger"
    assert run.projector_name(make_model("internvl")) == "multi_modal_projector"
    with pytest.raises(ValueError, match="train_projector must be False for Linear: its projector is not known"):
        run.projector_name(torch.nn.Linear(2, 2))


def test_the_command_trains_any_model_on_conversations(data, tmp_path, words):
    about = ("--data", data / "data.json", "--images", data / "images", "--out", tmp_path / "run", "--steps", 2,
             "--batch-size", 2, "--micro-batch", 2, "--workers", 0, "--max-skipped", 1, "--k-max", 16, "--k-min", 2)
    code, said = words("train", "--model", CHECKPOINTS / "digits-llava", *about)
    assert code == 0 and "training adaptive: 2/2" in said and f"pruner: {tmp_path / 'run'}" in said, said
    assert "samples that could not be read, beside 4 trained on" in said
    written = RunConfig.read(tmp_path / "run" / "run_config.json")
    assert written.pruner.learning_rate == 1e-3 and written.pruner.steps == 2 and written.epochs is None
    digits = ("--model", CHECKPOINTS / "digits-llava")
    for arguments, match in ((about, "model must be given with data"),
                             (("--images", data), "images must come with data, got no --data"),
                             ((*digits, "--epochs", 1, *about), "steps and epochs both say how long"),
                             ((*digits, "--task", "shapes", *about), "task must come without data"),
                             (("--model", "nowhere", *about, "--no-resume"), "model must be a folder or a name")):
        code, said = words("train", *arguments)
        assert code == 2 and match in said, said


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(tmp_path):
    from budgetprune.evaluation.load import load_model

    model, processor = build_base()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), torch.bfloat16)[0].dtype == torch.bfloat16
    assert Path(tmp_path, "config.json").is_file() and load_model(str(tmp_path))[0].dtype == torch.float32
