"""`budgetprune eval --tasks lmms:...` with the real lmms-eval: its own scoring, and the digits asked through it."""

import json
import os

import pytest
from hosts import ROOT, python

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; make test-integrations installs and asks it")
pytest.importorskip("decord", reason="lmms-eval's llava_hf reads videos with decord, which is not installed")
import datasets
from lmms_eval.tasks import TaskManager
from PIL import Image

from budgetprune.evaluation.lmms import BENCHMARKS, checked, image_of, score_of
from budgetprune.integrations.lmms_run import LmmsEval, rotations_together, totals_of
from budgetprune.tasks.digits import COLOURS, draw

MODEL = str(ROOT / "budgetprune" / "checkpoints" / "digits-llava")
TASK = """
task: {name}
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: generate_until
doc_to_visual: !function digits.visual
doc_to_text: !function digits.text
doc_to_target: answer
{scored}
generation_kwargs: {{max_new_tokens: 2}}
metadata:
  - version: 0.0
"""
SCORED = {
    "digits_own": "process_results: !function digits.score\nmetric_list:\n"
                  "  - {metric: accuracy, aggregation: mean, higher_is_better: true}\n"
                  "  - {metric: share_of_seven, aggregation: mean, higher_is_better: true}",
    "digits_exact": "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true, "
                    "ignore_case: true, ignore_punctuation: true}"}
FUNCTIONS = """
def visual(doc):
    return [doc["image"].convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def score(doc, results):
    right = float(results[0].strip() == doc["answer"])
    return {"accuracy": right, "share_of_seven": float("7" in results[0])}
"""
COMMAND = "import sys; from budgetprune.cli import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for include_path: the digits, scored by a function of their own and by lmms-eval's exact match."""
    folder = tmp_path_factory.mktemp("tasks")
    canvases, names = draw("test", 4, seed=5), list(COLOURS)
    rows = [{"image": Image.fromarray(image), "question": f"which digit is {names[colour]}", "answer": str(answer),
             "photo": f"canvas {number}"}
            for number, (image, colours, answers) in enumerate(zip(canvases.images, canvases.colours, canvases.answers))
            for colour, answer in zip(colours, answers)]
    kinds = datasets.Features(image=datasets.Image(), question=datasets.Value("string"),
                              answer=datasets.Value("string"), photo=datasets.Value("string"))
    datasets.DatasetDict(test=datasets.Dataset.from_list(rows, features=kinds)).save_to_disk(folder / "data")
    for name, scored in SCORED.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / "data", scored=scored))
    (folder / "digits.py").write_text(FUNCTIONS)
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def arguments(folder, out, *more):
    return ("eval", "--tasks", "lmms:digits_own,digits,lmms:digits_exact", "--task-option",
            "lmms:digits_own.metric=accuracy", "--task-option", "lmms:digits_exact.metric=exact_match",
            *(part for name in SCORED for part in ("--task-option", f"lmms:{name}.include_path={folder}",
                                                   "--task-option", f"lmms:{name}.image=photo")),
            "--model", MODEL, "-m", "none,uniform", "-k", "2", "--samples", "12", "--batch", "1",
            "--latency-batch", "0", "--out", out, *more)


def test_the_command_asks_lmms_eval_and_our_own_task_beside_it(folder, tmp_path):
    result = python(COMMAND, tmp_path, *arguments(folder, tmp_path / "run"))
    assert result.returncode == 0, result.stdout + result.stderr
    cells = read(tmp_path / "run" / "records.jsonl")
    assert [(r["task"], r["method"], r["keep"], r["samples"]) for r in cells] == [
        (task, method, keep, 12) for task in ("lmms:digits_own", "digits", "lmms:digits_exact")
        for method, keep in (("none", 64), ("uniform", 2))]
    own, exact = cells[:2], cells[4:]
    for a, b in zip(own, exact):
        assert a["metrics"]["share_of_seven"] <= 1 and b["metrics"] == {"exact_match": a["accuracy"]}
        assert (a["accuracy"], a["ci95"], a["kept_mean"]) == (b["accuracy"], b["ci95"], b["kept_mean"])
        assert a["prefill_flops"] == b["prefill_flops"] > 0
    assert own[0]["accuracy"] > own[1]["accuracy"] and own[1]["kept_mean"] == 2
    said = read(tmp_path / "run" / "answers.jsonl")
    first = [line for line in said if line["cell"][:3] == ["lmms:digits_own", "digits-llava", "none"]]
    assert [line["sample"] for line in first] == [str(n) for n in range(12)]
    assert [line["image"] for line in first] == [f"canvas {n // 3}" for n in range(12)]
    assert all(line["score"] is (line["prediction"].strip() == line["answer"]) for line in first)
    assert first[0]["question"].startswith("which digit is ")


def test_a_group_and_an_unknown_task_are_refused(folder, tmp_path):
    host = LmmsEval(MODEL, "cpu", tmp_path, folder, half=False)
    assert host.size("digits_own") == 12
    with pytest.raises(ValueError, match="lmms-eval knows no task digits_nowhere"):
        host.size("digits_nowhere")


def test_the_table_names_tasks_that_there_are():
    tasks = TaskManager("ERROR")
    assert not [b.task for b in BENCHMARKS.values() if b.task not in tasks.all_tasks]
    for name, bench in BENCHMARKS.items():
        config = tasks._get_config(bench.task)
        metrics = {one["metric"] for one in config.get("metric_list", ())}
        assert not metrics or set(bench.metric) <= metrics, name


def log_of(docs, replies, process):
    return [{"doc_id": n, "doc": doc, "filtered_resps": [reply], **process(doc, [reply])}
            for n, (doc, reply) in enumerate(zip(docs, replies, strict=True))]


def test_pope_mme_and_seed_are_scored_as_lmms_eval_totals_them():
    from lmms_eval.tasks.mme import utils as mme
    from lmms_eval.tasks.pope import utils as pope
    from lmms_eval.tasks.seedbench import utils as seed

    docs = [{"question_id": str(n), "answer": answer, "image_source": f"COCO_{n // 2}"}
            for n, answer in enumerate(["yes", "no", "yes", "no"])]
    log = log_of(docs, ["Yes", "yes", "no", "no"], pope.pope_process_results)
    scores = [score_of(BENCHMARKS["pope"], entry) for entry in log]
    assert scores == [1, 0, 0, 1] and [image_of(BENCHMARKS["pope"], e) for e in log] == ["COCO_0"] * 2 + ["COCO_1"] * 2
    checked(BENCHMARKS["pope"], {"pope_accuracy": pope.pope_aggregate_accuracy([e["pope_accuracy"] for e in log])}, 0.5)
    docs = [{"question_id": f"{category}/{n // 2}.png", "category": category, "answer": "Yes" if n % 2 else "No"}
            for category in ("count", "code_reasoning") for n in range(4)]
    log = log_of(docs, ["no", "yes", "no", "no", "Yes.", "yes", "no", "yes"], mme.mme_process_results)
    assert [score_of(BENCHMARKS["mme"], entry) for entry in log] == [1, 1, 1, 0, 0, 1, 1, 1]
    # Two images a category: one all right (200), one half right (50).
    perception = [e["mme_perception_score"] for e in log if "mme_perception_score" in e]
    assert mme.mme_aggregate_results(perception) == 125 and len(perception) == 4
    docs = [{"question_id": str(n), "answer": "B", "data_type": "image", "data_id": "i"} for n in range(3)]
    log = log_of(docs, ["B", "b. two", "A"], seed.seed_process_result)
    assert [score_of(BENCHMARKS["seed"], entry) for entry in log] == [1, 1, 0]
    checked(BENCHMARKS["seed"], {"seed_all": seed.seed_aggregation_result([e["seed_all"] for e in log])}, 2 / 3)


def test_vqa_accuracy_and_letters_are_scored_as_lmms_eval_totals_them():
    from lmms_eval.tasks.scienceqa import utils as scienceqa
    from lmms_eval.tasks.textvqa import utils as textvqa

    doc = {"question_id": 1, "image_id": "i", "answers": ["nikon"] * 2 + ["canon"] * 8}
    (entry,) = log_of([doc], ["Nikon"], textvqa.textvqa_process_results)
    assert score_of(BENCHMARKS["textvqa"], entry) == pytest.approx(0.6)
    (entry,) = log_of([{"choices": ["a", "b"], "answer": 1}], ["B. b"], scienceqa.sqa_process_results)
    assert score_of(BENCHMARKS["scienceqa"], entry) == 1.0


def test_mmbench_is_right_where_all_rotations_are(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    from lmms_eval.tasks.mmbench import en_utils

    monkeypatch.chdir(tmp_path)
    docs = [{"index": index, "question": "q", "answer": answer, "hint": "nan", "source": "s", "split": "dev",
             "category": "c", "L2-category": "l", "A": "one", "B": "two", "C": "three", "D": "four"}
            for index, answer in ((5, "A"), (1000005, "B"), (2000005, "C"), (7, "D"), (1000007, "A"), (9, "B"))]
    log = log_of(docs, ["A", "B", "C", "D", "C", "I think it is B"], en_utils.mmbench_process_results)
    together = rotations_together(log)
    scores = [score_of(BENCHMARKS["mmbench"], entry) for entry in together]
    assert [entry["gpt_eval_score"]["index"] for entry in together] == [5, 7, 9] and scores == [1, 0, 1]
    total = en_utils.mmbench_aggregate_dev_results_static([e["gpt_eval_score"] for e in log], None)
    checked(BENCHMARKS["mmbench"], {"gpt_eval_score": total}, sum(scores) / 3)
    assert os.listdir(tmp_path) == ["submissions"] and totals_of({"gpt_eval_score,none": total}) == {
        "gpt_eval_score": total}
