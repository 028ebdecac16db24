"""Cells that spare layers, or tokens and layers: measured, resumed, compared and shown like any pruner's."""

import json
import re
from dataclasses import replace

import families
import pytest
import torch
from sample_run import report
from tiny import make_llava, state_of

import budgetprune
from budgetprune import tasks
from budgetprune.cost import VlmShape, joint_flops
from budgetprune.evaluation import answers, record
from budgetprune.evaluation.compare import cell_label, compare
from budgetprune.evaluation.overlays import note
from budgetprune.evaluation.run import EvalConfig, evaluate, prepare, pruners_in
from budgetprune.models.spared import parts, read_spared
from budgetprune.training.base_model import load_base
from budgetprune.training.joint import joint_from_pretrained, spend
from budgetprune.training.joint_config import JointConfig
from budgetprune.training.joint_task import scores, train_task_joint

BOTH, LAYERS = "adaptive+adallava", "adallava"
KINDS = {"full": {"depth_options": {"prefix": 1}}, "tokens": {"depth": None},
         "lora": {"tune": "lora", "depth_options": {"prefix": 1, "form": "heads", "rank": 2}}}


@pytest.fixture(scope="module")
def digits():
    return (*load_base(), tasks.build("digits"))


@pytest.fixture(scope="module")
def folders(digits, tmp_path_factory):
    """Of three joint runs, and `layers`, which prune_depth alone wrote."""
    root = tmp_path_factory.mktemp("spared")
    for name, options in KINDS.items():
        train_task_joint(root / name, JointConfig(**{"options": {"tau": 1.0}, "steps": 1, "batch_size": 2,
                                                     "model_learning_rate": 0.05, **options}))
    with budgetprune.prune_depth(digits[0], "adallava", budget=3, prefix=2) as depth:
        depth.save_pretrained(root / "layers")
    return root


def config(folder, methods, budgets=(8,), **options):
    return EvalConfig(methods, budgets, pruners_in([folder]), samples=6, images=1, **{"latency_batch": 0} | options)


@pytest.fixture(scope="module")
def run(digits, folders, tmp_path_factory):
    """A run of the full model and of joint cells; what progress said."""
    out, seen = tmp_path_factory.mktemp("run"), []
    evaluate(*digits, out, config(folders / "full", [BOTH, "none", "uniform", "fastv"], (8, 16), layers=(2, 4)),
             model_name="digits-llava", tell=lambda name, *_: seen.append(name))
    evaluate(*digits, out, config(folders / "layers", [LAYERS], ()), model_name="digits-llava")
    return out, seen


@pytest.fixture(scope="module")
def cells(run):
    return {(r.method, r.keep, r.layers): r for r in record.read(run[0] / "records.jsonl")}


@torch.no_grad()
def logits(digits, rows=2):
    model, processor, task = digits
    return model(**prepare(processor, task.samples("test", rows, 0), model)).logits


def everything(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name, keep, layers", [("full", 16, 2), ("lora", 16, 3), ("tokens", 16, None)])
def test_within_a_cell_the_model_is_what_training_left_and_behind_it_bit_equal_to_before(
        digits, folders, name, keep, layers):
    model = digits[0]
    stock = logits(digits)  # a model's first forward leaves attributes of its own
    before, state = everything(model), state_of(model)
    learnt = [p.requires_grad for p in model.parameters()]
    where = [p.data_ptr() for p in model.parameters()]
    other, processor = load_base()
    joint_from_pretrained(other, folders / name)
    spend(other, budgetprune.cost.JointChoice(keep, layers, 0, 0.0))
    with read_spared(folders / name).entered(model, keep, layers) as pruning:
        inside = logits(digits)
        assert pruning is not None and torch.equal(inside, logits((other, processor, digits[2])))
        assert not torch.equal(inside, stock)
    assert same(everything(model), before) and state_of(model) == state and torch.equal(logits(digits), stock)
    assert [p.requires_grad for p in model.parameters()] == learnt and not hasattr(model, "peft_config")
    assert [p.data_ptr() for p in model.parameters()] == where  # set aside, not copied


@pytest.mark.parametrize("name", ["full", "lora"])
def test_an_error_within_a_cell_leaves_the_model_as_it_was(digits, folders, name):
    before, state = everything(digits[0]), state_of(digits[0])
    with pytest.raises(KeyboardInterrupt):
        with read_spared(folders / name).entered(digits[0], 8, 2):
            raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"budget must be in \["):
        with read_spared(folders / name).entered(digits[0], 8, 9):
            raise AssertionError("entered")
    assert same(everything(digits[0]), before) and state_of(digits[0]) == state
    other = make_llava()
    before, state = everything(other), state_of(other)
    with pytest.raises(ValueError, match="tuned_model.safetensors is of another model"):
        with read_spared(folders / name).entered(other, 8, 2):
            raise AssertionError("entered")
    assert same(everything(other), before) and state_of(other) == state


def test_every_pair_of_tokens_and_layers_is_a_cell_and_the_full_model_behind_them_the_stock_one(
        digits, run, cells, tmp_path):
    assert run[1] == [f"{BOTH} K=8, 2 layers", f"{BOTH} K=8, 4 layers", f"{BOTH} K=16, 2 layers",
                      f"{BOTH} K=16, 4 layers", "none K=64", "uniform K=8", "uniform K=16", "fastv K=8", "fastv K=16",
                      "done"]
    assert [key for key in cells if key[2]] == [*((BOTH, k, n) for k in (8, 16) for n in (2, 4)),
                                                *((LAYERS, 64, n) for n in (2, 3, 4))]
    evaluate(*digits, tmp_path, EvalConfig(["none"], [], samples=6, latency_batch=0, images=0),
             model_name="digits-llava")
    (alone,) = answers.read(tmp_path).values()
    beside = answers.read(run[0])[cells["none", 64, None].key()]
    assert alone == beside and len(beside) == 6


def test_a_cells_answers_are_those_that_training_scores(digits, folders, run, cells):
    other, processor = load_base()
    joint_from_pretrained(other, folders / "full")
    spend(other, budgetprune.cost.JointChoice(16, 2, 0, 0.0))
    said = answers.read(run[0])[cells[BOTH, 16, 2].key()]
    assert [one.score for one in said.values()] == scores(other, processor, images=2, seed=0)


def test_flops_are_those_of_the_pair_with_the_latency_token_and_both_choices(digits, cells):
    shape = VlmShape.from_config(digits[0].config)
    text = prepare(digits[1], digits[2].samples("test", 1, 0), digits[0])["input_ids"].shape[1] - 64
    with budgetprune.prune_depth(digits[0], "adallava", budget=3, prefix=2) as depth:
        own = depth.scheduler.flops()
    hidden = shape.decoder.hidden
    assert own == 2 * (256 * hidden + hidden * hidden + hidden * 2)
    for n in (2, 3, 4):
        assert cells[LAYERS, 64, n].prefill_flops == joint_flops(shape, 64, n, text, selector_flops=own).total
    one, other = cells[BOTH, 8, 2].prefill_flops, cells[BOTH, 8, 4].prefill_flops
    assert other - one == joint_flops(shape, 8, 4, text).total - joint_flops(shape, 8, 2, text).total
    full = cells["none", 64, None].prefill_flops
    assert one < other < full < cells[LAYERS, 64, 4].prefill_flops


@torch.no_grad()
def test_kv_bytes_are_those_that_one_prompt_leaves_in_its_cache(digits, folders, cells):
    model, processor, task = digits

    def held():
        cache = model(**prepare(processor, task.samples("test", 1, 0), model), use_cache=True).past_key_values
        tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    assert held() == cells["none", 64, None].kv_bytes
    for method in ("uniform", "fastv"):
        with budgetprune.prune(model, method, keep=8):
            assert held() == cells[method, 8, None].kv_bytes
    for folder, method, keep, n in (("full", BOTH, 16, 2), ("full", BOTH, 8, 4), ("layers", LAYERS, 64, 3)):
        with read_spared(folders / folder).entered(model, keep, n):
            assert held() == cells[method, keep, n].kv_bytes


def test_a_run_that_was_cut_off_goes_on_and_other_layers_are_other_cells(digits, folders, tmp_path):
    wanted = config(folders / "full", [BOTH], (8,), layers=(2, 3), latency_batch=2)

    def stop(name, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*digits, tmp_path, wanted, model_name="m", tell=stop)
    path = tmp_path / "records.jsonl"
    first = path.read_text()
    evaluate(*digits, tmp_path, wanted, model_name="m")
    both = path.read_text()
    found = evaluate(*digits, tmp_path, wanted, model_name="m")
    assert path.read_text() == both and both.startswith(first) and len(both.splitlines()) == 2
    assert [r.layers for r in found] == [2, 3] and all(r.prefill_ms > 0 and r.latency_batch == 2 for r in found)
    evaluate(*digits, tmp_path, replace(wanted, layers=(3, 1), latency_batch=0), model_name="m")
    assert [json.loads(line)["layers"] for line in path.read_text().splitlines()] == [2, 3, 1]


def test_units_of_heads_are_priced_like_layers_and_their_cache_is_not_claimed(digits, folders, cells, tmp_path):
    (one,) = evaluate(*digits, tmp_path, config(folders / "lora", [BOTH], layers=(2,)), model_name="m")
    assert one.layers == 2 and one.kv_bytes is None
    plan = one.prefill_flops - cells[BOTH, 8, 2].prefill_flops  # 2 logits a head, not one a layer
    hidden, heads = digits[0].config.text_config.hidden_size, digits[0].config.text_config.num_attention_heads
    assert plan == 2 * hidden * 3 * (2 * heads - 1)


def test_tuned_weights_tell_cells_apart_and_are_in_effect_without_layers_too(digits, folders, tmp_path):
    tuned = config(folders / "tokens", ["adaptive"])
    (one,) = evaluate(*digits, tmp_path, tuned, model_name="m")
    assert one.layers is None and "layers" not in json.loads((tmp_path / "records.jsonl").read_text())
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("budgetprune_config.json", "budgetprune_model.safetensors"):
        (plain / name).write_bytes((folders / "tokens" / name).read_bytes())
    assert tuned.options_of("adaptive") != config(plain, ["adaptive"]).options_of("adaptive")


def test_layers_left_out_are_a_few_of_the_range(digits, folders):
    saved = read_spared(folders / "full")
    assert saved.layers(digits[0]) == [1, 2, 3, 4] and saved.layers(digits[0], (3, 2, 3)) == [3, 2]
    assert read_spared(folders / "tokens").layers(digits[0]) == [None]

    class Deep(torch.nn.Module):
        layers = [None] * 32

    class Family:
        def decoder(self, model):
            return Deep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("budgetprune.models.spared.family_of", lambda model: Family())
        patch.setattr("budgetprune.models.spared.refuse_prefix_lm", lambda model: None)
        assert replace(saved, depth={"options": {"prefix": 16}}).layers(None) == [16, 20, 24, 28, 32]


def test_names_say_what_spares_tokens_and_what_layers(folders):
    assert parts(BOTH) == ("adaptive", "adallava") and parts(LAYERS) == ("none", "adallava")
    assert parts("visionzip+fastv") == ("visionzip+fastv", None) and parts("none") == ("none", None)
    assert [read_spared(folders / name).name for name in ("full", "layers", "tokens")] == [BOTH, LAYERS, "adaptive"]


def test_compare_names_a_cell_by_its_tokens_and_layers(run, cells):
    (found,), _ = compare(run[0], a=f"{BOTH}@8/2", b=f"{LAYERS}@64/3")
    assert (found.a, found.b) == (cells[BOTH, 8, 2], cells[LAYERS, 64, 3]) and found.values()["b"]["layers"] == 3
    assert cell_label(found.a) == f"{BOTH}@8/2"
    every, _ = compare(run[0], method=BOTH, keep="16")
    assert [(c.b.keep, c.b.layers) for c in every] == [(16, 2), (16, 4)]
    with pytest.raises(ValueError, match=r"b must name one cell of digits, got .*@16/2 of .*@16/4"):
        compare(run[0], b=f"{BOTH}@16")
    with pytest.raises(ValueError, match=r"must be one of the cells .*adallava@8/2.* got 'adaptive\+adallava@8/3'"):
        compare(run[0], b=f"{BOTH}@8/3")
    with pytest.raises(ValueError, match="got 'none@64/4'"):
        compare(run[0], b="none@64/4")


def test_a_real_run_has_a_report_whose_pictures_do_not_mix_the_layers(run):
    page = report(run[0], out=run[0] / "page.html")
    shots = [json.loads(line) for line in (run[0] / "pictures.jsonl").read_text().splitlines()]
    assert {f"{BOTH} in 2 layers", f"{BOTH} in 4 layers", f"{LAYERS} in 3 layers"} <= {s["method"] for s in shots}
    assert len(page.all("figure", class_="card")) == 1
    assert note(f"{BOTH} in 2 layers") == f"{note('adaptive')} The language model runs fewer of its layers."
    assert note(f"{LAYERS} in 1 layer") == "Every patch is read. The language model runs fewer of its layers."


def test_the_command_takes_such_folders_beside_others(words, folders, tmp_path):
    code, said = words("eval", "-m", "none," + BOTH, "-k", "8", "--layers", "2", "4", "--pruner", folders / "full",
                       "--samples", 3, "--latency-batch", 0, "--out", tmp_path)
    assert code == 0, said
    assert "kept ┃ layers ┃ accuracy" in said and f"{BOTH} │ 8 │ 4 │" in said and "none │ 64 │ all │" in said
    found = record.read(tmp_path / "records.jsonl")
    assert [(r.method, r.layers) for r in found] == [("none", None), (BOTH, 2), (BOTH, 4)]


@pytest.mark.parametrize("arguments, match", [
    (("--layers", "5"), r"layers must be in \[1, 4\] for .*, where 1 always run, got 5"),
    (("--layers", "0"), r"layers must be at least 1, got 0"),
    (("--layers", "two"), "layers must hold whole numbers, got 'two'"),
    (("-m", "uniform", "--layers", "2"), "pruners must be of methods that are evaluated, uniform; got"),
])
def test_layers_that_cannot_be_are_named_before_anything_is_asked(words, folders, tmp_path, arguments, match):
    code, said = words("eval", "-k", "8", "--pruner", folders / "full", "--samples", 3, "--out", tmp_path, "-m", BOTH,
                       *arguments)
    assert code == 2 and not (tmp_path / "records.jsonl").exists()
    assert re.search(match, said), said


def test_layers_without_a_folder_that_spares_them_are_refused(words, folders, digits, tmp_path):
    code, said = words("eval", "-m", "uniform", "-k", "8", "--layers", "2", "--out", tmp_path)
    assert code == 2 and "layers must come with a pruner that spares layers" in said
    with pytest.raises(ValueError, match="layers must come with a pruner that spares layers"):
        EvalConfig(["uniform"], [8], layers=(2,))
    with pytest.raises(ValueError, match=r"adaptive\+adallava is trained: .*train-joint"):
        EvalConfig([BOTH], [8])
    with pytest.raises(ValueError, match=r"layers must be in \[2, 4\] for .*, where 2 always run, got 1"):
        evaluate(*digits, tmp_path, config(folders / "layers", ["none", LAYERS], layers=(1,)), model_name="m")
    assert not (tmp_path / "records.jsonl").exists()


def test_folders_that_cannot_be_entered_are_refused(digits, folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="no budgetprune_config.json in"):
        read_spared(tmp_path)
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in (folders / "full").iterdir():
        if file.name != "train_log.jsonl":
            (cut / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="no finished run of tokens and layers in .*cut"):
        read_spared(cut)
    (cut / "train_log.jsonl").touch()
    (cut / "tuned_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no tuned_model.safetensors in .*cut"):
        read_spared(cut)
    with budgetprune.prune(digits[0], "fastv", keep=8) as inside:
        inside.save_pretrained(tmp_path / "inside")
    with budgetprune.prune_depth(digits[0], "adallava", budget=3) as depth:
        depth.save_pretrained(tmp_path / "inside")
    with pytest.raises(ValueError, match="must hold a method that acts before the language model .* got fastv"):
        read_spared(tmp_path / "inside")
    other = families.make_model("paligemma")
    with pytest.raises(ValueError, match="model must have causal attention"):
        read_spared(folders / "layers").layers(other)
