"""The command line as a person meets it: the whole way in small, and every wrong turn."""

import json

import pytest
import task_files

from budgetprune.cli import joined
from budgetprune.training.base_model import CHECKPOINTS, load_base


@pytest.fixture
def run(command):
    return command


@pytest.mark.parametrize("typed, read", [
    ("eval -m random uniform -k 4 8 --samples 2", "eval -m random,uniform -k 4,8 --samples 2"),
    ("ablate --budgets 4 8 --vary tau=1", "ablate --budgets 4,8 --vary tau=1"),
    ("cost --keep 576 144 llava-1.5-7b", "cost --keep 576,144 llava-1.5-7b"),
    ("report runs/a runs/b", "report runs/a runs/b"),
])
def test_lists_may_be_written_with_spaces(typed, read):
    assert joined(typed.split()) == read.split()


def test_a_folder_where_a_file_is_to_be_written_is_one_line(run, tmp_path):
    code, said = run("plan", "--flops", "2e12", "--out", tmp_path)
    assert code == 2 and said.splitlines()[-1].startswith("error:") and str(tmp_path) in said, said


def test_train_eval_and_report_hang_together(run, tmp_path):
    pruner, records = tmp_path / "pruner", tmp_path / "eval"
    code, said = run("train", "--out", pruner, "--steps", 3, "--batch-size", 4)
    assert code == 0 and f"pruner: {pruner}" in said and "3/3" in said
    code, said = run("eval", "--out", records, "--pruner", pruner, "-m", "none,adaptive,random", "-k", "8 16",
                     "--samples", 6, "--latency-batch", 2)
    assert code == 0 and len((records / "records.jsonl").read_text().splitlines()) == 5
    code, said = run("report", records)
    assert code == 0 and (records / "report.html").stat().st_size > 10_000


def test_a_pruner_is_trained_and_measured_on_another_task(run, tmp_path):
    pruner, records = tmp_path / "pruner", tmp_path / "eval"
    code, said = run("train", "--task", "shapes", "--out", pruner, "--steps", 2, "--batch-size", 4)
    assert code == 0, said
    code, said = run("eval", "--task", "shapes", "--pruner", pruner, "-m", "none,adaptive", "-k", "8", "--samples", 9,
                     "--latency-batch", 0, "--out", records)
    assert code == 0, said
    full, adaptive = (json.loads(line) for line in (records / "records.jsonl").read_text().splitlines())
    assert (full["task"], full["model"], full["keep"], adaptive["keep"]) == ("shapes", "shapes-llava", 64, 8)
    assert set(full["metrics"]) == {"yesno", "count", "position"} and full["kept_recall"] == 1
    assert sum(full["metrics"].values()) / 3 == pytest.approx(full["accuracy"])
    code, said = run("train", "--out", pruner, "--steps", 2, "--batch-size", 4)
    assert code == 2 and "holds a run on the task shapes; choose another folder" in " ".join(said.split())
    code, said = run("train", "--task", "gqa", "--out", tmp_path / "other")
    said = " ".join(said.split())
    assert code == 2 and "task must be one that draws its own images (digits, shapes), got gqa" in said


@pytest.mark.parametrize("budgets", [("4", "8"), ("4,8",), ("4 8",), ("4,", "8")])
def test_lists_may_be_written_with_spaces_or_commas(run, tmp_path, budgets):
    code, said = run("eval", "--budgets", *budgets, "--methods", "uniform", "random", "--samples", 2,
                     "--latency-batch", 0, "--out", tmp_path)
    assert code == 0, said
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 4


def test_a_published_task_is_asked_of_a_model_folder(run, tmp_path):
    """The digits LLaVA, loaded as any other model is; to it the questions are unknown words."""
    files = task_files.pope(tmp_path)
    arguments = ("eval", "--task", "pope", "--task-option", f"annotations={files['annotations']}", "--task-option",
                 f"images={files['images']}", "--model", CHECKPOINTS / "digits-llava", "-m", "none,uniform", "-k",
                 "0.25", "8", "--samples", "all", "--latency-batch", 0, "--new-tokens", 2, "--batch", 3,
                 "--out", tmp_path / "run")
    code, said = run(*arguments)
    assert code == 0, said
    found = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [(r["method"], r["keep"]) for r in found] == [("none", 64), ("uniform", 16), ("uniform", 8)]
    assert {(r["task"], r["model"], r["samples"]) for r in found} == {("pope:coco_pope_popular", "digits-llava", 4)}
    assert set(found[0]["metrics"]) == {"precision", "recall", "f1", "yes_ratio"}
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 12
    code, said = run(*arguments, "--task-option", "images=nowhere")
    assert code == 2 and "task-option images must be given once, got it twice" in said


@pytest.mark.parametrize("model, match", [
    ((), "model must be given for task pope: those that come with the package know only tasks that"),
    (("--model", "nowhere"), "model must be a folder or a name on the Hugging Face hub (owner/name), got nowhere"),
    (("--model", "."), "model must be a folder with a config.json, got ."),
    (("--model", "no/model"), "model no/model cannot be loaded: "),
])
def test_a_model_that_is_not_there_gets_one_clear_line(run, tmp_path, monkeypatch, model, match):
    files = task_files.pope(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, said = run("eval", "--task", "pope", "--task-option", f"annotations={files['annotations']}", "--task-option",
                     f"images={files['images']}", *model)
    assert code == 2 and match in " ".join(said.split()) and "Traceback" not in said


def test_a_model_of_another_family_is_refused_by_its_class(run, tmp_path):
    from transformers import BlipConfig, BlipForConditionalGeneration

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BlipConfig(text_config={**small, "vocab_size": 30, "bos_token_id": 1, "sep_token_id": 2},
                        vision_config={**small, "image_size": 8, "patch_size": 4})
    load_base()[1].save_pretrained(tmp_path / "blip")
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    code, said = run("eval", "--model", tmp_path / "blip", "-m", "uniform", "-k", "8", "--samples", 2)
    said = " ".join(said.split())
    assert code == 2 and "model must be one of Llava" in said and "got BlipForConditionalGeneration" in said


def test_a_task_option_makes_another_task_of_the_digits(run, tmp_path):
    code, said = run("eval", "--task-option", "noise=0.1", "-m", "uniform", "-k", "8", "--samples", 2,
                     "--latency-batch", 0, "--out", tmp_path)
    assert code == 0 and json.loads((tmp_path / "records.jsonl").read_text())["task"] == "digits,noise=0.1"


def test_a_second_run_does_nothing_twice(run, tmp_path):
    arguments = ("eval", "--out", tmp_path, "-m", "uniform", "-k", "8", "--samples", 3, "--latency-batch", 0)
    assert run(*arguments)[0] == 0
    before = (tmp_path / "records.jsonl").read_bytes()
    assert run(*arguments)[0] == 0
    assert (tmp_path / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("arguments, match", [
    (("eval", "-m", "fastvv"), "unknown method 'fastvv'; known: adaptive"),
    (("eval", "-m", "adaptive", "-k", "8"), "adaptive is trained: name the folder of its weights"),
    (("eval", "-m", "uniform", "-k", "eight"), "budgets must hold whole numbers, fractions such as 0.25, or own"),
    (("eval", "-m", "uniform", "-k", "99", "--samples", "1"), "budgets must be in [1, N=64], got 99"),
    (("eval", "--task", "chess"), "task must be one of digits, gqa, pope, scienceqa, shapes, textvqa, got 'chess'"),
    (("eval", "--task", "pope"), "task pope needs the option annotations; its options: annotations, images, suffix"),
    (("eval", "--task", "pope", "--task-option", "annotations"), "task-option must be key=value with a key out of"),
    (("eval", "--task", "pope", "--task-option", "a=b"), "task pope has no option a; its options: annotations, images"),
    (("eval", "--task-option", "noise=loud"), "task-option noise must be a number, got 'loud'"),
    (("eval", "--task-option", "noise=2"), "noise must be in [0, 1], got 2"),
    (("eval", "--task", "pope", "--task-option", "annotations=a", "--task-option", "images=b"),
     "annotations must be a file such as coco_pope_popular.json, got a, which is no file"),
    (("eval", "--samples", "some"), "samples must hold whole numbers, got 'some'"),
    (("eval", "-m", "uniform", "--samples", "all"), "samples must be a count for task digits, which has no end"),
    (("eval", "-m", "uniform", "-k", "1.5", "--samples", "1"), "budgets must be in (0, 1] where they are fractions"),
    (("eval", "-m", "uniform", "--batch", "0"), "batch must be at least 1, got 0"),
    (("eval", "--model", "nowhere"), "no digits LLaVA"),
    (("eval", "--frobnicate"), "No such option: --frobnicate"),
    (("train", "--estimator", "magic"), "estimator must be one of"),
    (("train", "--fusion", "add"), "fusion must be one of 'post', 'encoder', got 'add'"),
    (("train", "--conditioning", "sum"), "conditioning must be one of 'add', 'concat', 'dot', 'cross', 'none'"),
    (("train", "--k-min", "9", "--k-max", "3"), "k_min and k_max must satisfy"),
    (("train", "--steps", "zero"), "'--steps'"),
    (("cost", "llava-1.5-7b", "--keep", "600"), "keep must be at most 576, the image tokens of 1 crops, got 600"),
    (("cost", "gpt-9"), "model must be one of internvl3-8b, llava-1.5-13b, "),
    (("cost", "--keep", ""), "keep must name at least one, got ''"),
    (("cost", "--keep", " ,"), "keep must name at least one, got ' ,'"),
    (("cost", "--crops", "0"), "crops must be at least 1, got 0"),
    (("eval", "--methods", ""), "methods must name at least one, got ''"),
    (("eval", "--budgets", ""), "budgets must name at least one, got ''"),
    (("eval", "-m", "uniform", "-k", "own"), "budgets must name a count where no method has its own"),
    (("eval", "-m", "uniform", "-k", "8", "--seed", "-1"), "seed must be in [0, "),
    (("train", "-m", "uniform"), "method must be a trained one (adaptive, adaptive_query, "),
    (("train", "-m", "nope"), "unknown method 'nope'; known: adaptive"),
    (("train", "--tau", "nan"), "tau must be a finite number, got nan"),
    (("frobnicate",), "No such command"),
])
def test_wrong_arguments_get_one_clear_line_and_exit_code_two(run, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    code, said = run(*arguments)
    assert code == 2
    assert match in " ".join(said.split())
    assert "Traceback" not in said


def test_a_pruner_of_a_method_that_is_not_evaluated_is_refused(run, tmp_path):
    config = {"method": "adaptive", "options": {}, "keep": 8, "train_keep": None, "positions": "original"}
    (tmp_path / "budgetprune_config.json").write_text(json.dumps(config))
    code, said = run("eval", "-m", "uniform", "-k", "8", "--pruner", tmp_path, "--out", tmp_path / "eval")
    assert code == 2 and f"{tmp_path}, which is of adaptive" in " ".join(said.split())
    assert "pruners must be of methods that are evaluated, uniform; got" in " ".join(said.split())
    (tmp_path / "budgetprune_config.json").write_text('{"method": "adaptive"}')
    code, said = run("eval", "-m", "adaptive", "-k", "8", "--pruner", tmp_path, "--out", tmp_path / "eval")
    assert code == 2 and "budgetprune_config.json" in said and "it has no options, keep, train_keep" in said
    assert not (tmp_path / "eval").exists()


def test_cost_counts_a_keep_of_zero_as_the_one_token_that_prune_keeps(run):
    for method in ((), ("--method", "fastv")):
        zero, one = (run("cost", "--keep", keep, *method) for keep in (0, 1))
        assert zero == one and zero[0] == 0


def test_a_report_of_an_empty_folder_says_what_to_do(run, tmp_path):
    code, said = run("report", tmp_path)
    assert code == 2 and "no records in" in said and "budgetprune eval" in " ".join(said.split())


def test_ctrl_c_keeps_what_is_done(run, tmp_path, monkeypatch):
    from budgetprune.evaluation import run as running

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "generate", stop)
    code, said = run("eval", "--out", tmp_path, "-m", "uniform", "-k", "8", "--samples", 3)
    assert code == 130 and "the same command goes on from here" in said and "Traceback" not in said


def test_list_names_every_method_and_cost_prices_a_model(run):
    from budgetprune import methods

    code, said = run("list")
    assert code == 0 and all(name in said for name in methods())
    code, said = run("cost", "llava-1.5-7b", "--keep", 64)
    assert code == 0 and "2,051.3 " in said
    code, said = run("cost", "llava-1.5-7b", "--keep", 72, "--method", "pyramiddrop")
    assert code == 0 and "270.0" in said


def test_cost_reads_a_checkpoints_config(run, tmp_path):
    from budgetprune.training.base_model import build_base

    build_base()[0].config.save_pretrained(tmp_path)
    code, said = run("cost", tmp_path, "--keep", 8, "--text", 4)
    assert code == 0 and " 12 " in said


def test_no_command_shows_help(run):
    code, said = run()
    assert "Usage" in said and "train-base" in said


def test_the_command_line_has_the_configurations_defaults():
    import inspect

    from budgetprune import cli
    from budgetprune.selectors import build
    from budgetprune.training.config import TrainConfig

    defaults = {**TrainConfig().__dict__, **build("adaptive").options()}
    for name, parameter in inspect.signature(cli.train).parameters.items():
        if name in defaults:
            assert parameter.default == defaults[name], name
    assert inspect.signature(cli.demo).parameters["steps"].default == TrainConfig().steps
