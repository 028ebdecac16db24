"""Cells of tasks that lmms-eval asks, with a host that answers as lmms-eval's API does."""


import pytest
import torch

from budgetprune import tasks
from budgetprune.evaluation import answers, record
from budgetprune.evaluation.interval import wilson_interval
from budgetprune.evaluation.lmms import BENCHMARKS, benchmark, evaluate_lmms, image_of, listening, score_of
from budgetprune.evaluation.run import EvalConfig, evaluate, prepare
from budgetprune.integrations.lmms_run import totals_of
from budgetprune.training import load_base

COUNT = 12


class Digits:
    """The digits task as lmms-eval would ask it: one prompt at a time, a log entry each, a mean over all."""

    def __init__(self, metric=lambda right: right, total=lambda mean: mean, count=COUNT):
        self.model, self.processor = load_base()
        self.samples, self.metric, self.total = tasks.build("digits").samples("test", count, 0), metric, total
        self.asked = []

    def size(self, task):
        return len(self.samples)

    def ask(self, task, limit):
        self.asked.append((task, limit))
        log = []
        for number, sample in enumerate(self.samples[:limit]):
            inputs = prepare(self.processor, [sample], self.model)
            new = self.model.generate(**inputs, do_sample=False, max_new_tokens=2)[:, inputs["input_ids"].shape[1]:]
            text = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()
            right = float(text == sample.answer)
            log.append({"doc_id": number, "doc": {"image_id": sample.image_id}, "target": sample.answer,
                        "arguments": [sample.question, {"max_new_tokens": 2}], "resps": [[text]],
                        "filtered_resps": [text], "exact_match": self.metric(right)})
        mean = sum(entry["filtered_resps"][0] == entry["target"] for entry in log) / len(log)
        return {"exact_match": self.total(mean), "other": 7.0}, log[::-1]


@pytest.fixture(scope="module")
def host():
    return Digits()


CONFIG = EvalConfig(["none", "fastv", "prumerge"], [8, None], samples=None, latency_batch=0, images=0)
BENCH = benchmark("gqa", image="image_id")


def test_a_cell_is_what_our_own_evaluation_measures(host, tmp_path):
    ours = evaluate(host.model, host.processor, tasks.build("digits"), tmp_path / "own",
                    EvalConfig(["none", "fastv", "prumerge"], [8, None], samples=COUNT, batch=1, latency_batch=0),
                    model_name="tiny")
    seen = []
    theirs = evaluate_lmms(host, "lmms:digits", BENCH, tmp_path / "lmms", CONFIG, model_name="tiny",
                           tell=lambda *said: seen.append(said))
    assert [said[0] for said in seen] == ["none K=64", "fastv K=8", "prumerge K=8", "prumerge own count", "done"]
    for a, b in zip(ours, theirs, strict=True):
        assert b.task == "lmms:digits" and b.metrics == {"exact_match": b.accuracy, "other": 7.0}
        assert (a.method, a.keep, a.samples, a.accuracy, a.ci95, a.kept_mean, a.layer_mean, a.method_options) == (
            b.method, b.keep, b.samples, b.accuracy, b.ci95, b.kept_mean, b.layer_mean, b.method_options)
        assert b.prefill_flops == a.prefill_flops > 0 and b.prefill_ms is None
    said = [list(cell.values()) for cell in answers.read(tmp_path / "lmms").values()]
    for one, other in zip(answers.read(tmp_path / "own").values(), said, strict=True):
        assert [(a.sample, a.prediction, a.score, a.image, a.question, a.answer) for a in other] == [
            (a.sample, a.prediction, a.score, a.image, a.question, a.answer) for a in one.values()]
    assert "generate" not in vars(host.model) and "budget_pruner" not in host.model._modules


def test_a_second_run_asks_nothing_and_a_limit_is_other_cells(host, tmp_path):
    config = EvalConfig(["uniform"], [8], samples=None)
    first = evaluate_lmms(host, "lmms:digits", BENCH, tmp_path, config, model_name="tiny")
    asked = len(host.asked)
    assert evaluate_lmms(host, "lmms:digits", BENCH, tmp_path, config, model_name="tiny") == first
    assert len(host.asked) == asked and host.asked[-1] == ("gqa", None)
    (few,) = evaluate_lmms(host, "lmms:digits", BENCH, tmp_path, EvalConfig(["uniform"], [8], samples=5),
                           model_name="tiny")
    assert few.samples == 5 and host.asked[-1] == ("gqa", 5) and len(record.read(tmp_path / "records.jsonl")) == 2
    (all_,) = evaluate_lmms(host, "lmms:digits", BENCH, tmp_path, EvalConfig(["uniform"], [8], samples=500),
                            model_name="tiny")
    assert all_ == first[0]


def test_graded_scores_stay_numbers_and_others_are_right_or_wrong(tmp_path):
    config = EvalConfig(["none"], [], samples=None)
    for bench in (benchmark("vizwiz"), benchmark("scienceqa")):
        (cell,) = evaluate_lmms(Digits(), f"lmms:{bench.task}", bench, tmp_path, config, model_name="tiny")
        (said,) = answers.read(tmp_path, {cell.key()}).values()
        assert {type(one.score) for one in said.values()} == {float if bench.graded else bool}
    assert cell.ci95 == wilson_interval(sum(one.score for one in said.values()), COUNT)


@pytest.mark.parametrize("counts, match", [
    ({"total": lambda mean: 100 * mean}, "gqa's exact_match must be 1 times the mean score .*another way"),
    ({"metric": lambda right: {"hits": right}}, "gqa must score every question by exact_match in .0, 1., got .'hits'"),
    ({"metric": lambda right: 2 * right + 3}, "gqa must score every question by exact_match in .0, 1., got"),
])
def test_what_is_counted_in_another_way_is_refused(tmp_path, counts, match):
    host = Digits(**counts, count=4)
    with pytest.raises(ValueError, match=match):
        evaluate_lmms(host, "lmms:gqa", benchmark("gqa"), tmp_path, EvalConfig(["none"], []), model_name="tiny")
    assert not (tmp_path / "records.jsonl").exists() and "generate" not in vars(host.model)


def test_the_score_of_a_question_is_read_in_each_benchmarks_form():
    pope, mme, seed, mmbench = (BENCHMARKS[name] for name in ("pope", "mme", "seed", "mmbench"))
    entry = {"doc_id": 3, "doc": {"image_source": "COCO_1", "question_id": "count/1.png"},
             "pope_accuracy": {"question_id": 1, "score": 1.0, "prediction": "yes", "ground_truth": "yes"}}
    assert (score_of(pope, entry), image_of(pope, entry)) == (1.0, "COCO_1")
    for name in mme.metric:
        assert score_of(mme, {"doc_id": 0, name: {"question_id": "a", "category": "count", "score": 0.0}}) == 0.0
    assert image_of(mme, entry) == "count/1.png" and image_of(BENCHMARKS["scienceqa"], entry) == "question 3"
    assert score_of(seed, {"seed_image": {}, "seed_all": {"pred": "b ", "answer": "B", "question_id": "1"}}) == 1.0
    assert score_of(seed, {"seed_all": {"pred": "A", "answer": "B", "question_id": "1"}}) == 0.0
    assert score_of(mmbench, {"gpt_eval_score": {"score": 1.0}}) == 1.0
    with pytest.raises(ValueError, match="gqa must score every question by exact_match in .0, 1., got None; its "
                       "metrics: f1"):
        score_of(BENCHMARKS["gqa"], {"doc_id": 1, "doc": {}, "f1": 0.5})


def test_totals_are_the_numbers_without_their_errors():
    assert totals_of({"alias": "mme", "mme_cognition_score,none": 300.5, "mme_cognition_score_stderr,none": "N/A",
                      "exact_match,none": 0.5, "exact_match_stderr,none": 0.01, "submission,none": None,
                      "exact_match_stderr_clt,none": 0.1}) == {"mme_cognition_score": 300.5, "exact_match": 0.5}


def test_a_task_outside_the_table_needs_its_metric():
    with pytest.raises(ValueError, match="task-option metric must say which of mmmu_val's metrics .*; known without "
                       "it: lmms:vqav2, lmms:gqa"):
        benchmark("mmmu_val")
    own = benchmark("mmmu_val", metric="acc", image="id")
    assert (own.task, own.metric, own.image, own.scale, own.graded) == ("mmmu_val", ("acc",), "id", None, False)
    assert benchmark("vqav2_val") is not None and benchmark("vqav2_val") == benchmark("vqav2")


def test_prompts_of_several_images_have_no_formula_and_a_mean_count(host, tmp_path):
    """Kept tokens are of the whole prompt; the formula of FLOPs is of one image."""
    from budgetprune import prune
    from budgetprune.evaluation.lmms import costs_of_heard

    image = prepare(host.processor, host.samples[:1], host.model)
    ids, pixels = image["input_ids"], image["pixel_values"]
    twice = {"input_ids": torch.cat([ids, ids], 1), "pixel_values": pixels.repeat(2, 1, 1, 1),
             "attention_mask": torch.ones(1, 2 * ids.shape[1], dtype=torch.int64)}
    with prune(host.model, "uniform", keep=8) as pruning:
        with listening(host.model, pruning) as heard:
            host.model.generate(**twice, max_new_tokens=1)
        assert [(one.count, one.tokens) for one in heard] == [(16, 128)]
        assert costs_of_heard(host.model, host.model, pruning, heard, CONFIG, 64) == {}


@pytest.mark.parametrize("arguments, match", [
    (("--tasks", "lmms:pope"), "tasks that begin with lmms: need lmms-eval, which is not installed: pip install"),
    (("--tasks", "lmms:pope", "--task-option", "lmms:pope.limit=3"),
     "task-option of lmms:pope must be key=value, once each, with a key out of metric, image, include_path; got "
     "'limit=3'"),
])
def test_what_is_missing_for_lmms_eval_is_said(monkeypatch, words, tmp_path, arguments, match):
    monkeypatch.setattr("budgetprune.integrations.lmms_run.find_spec", lambda name: None)
    code, said = words("eval", "-m", "none", "--out", tmp_path, *arguments)
    assert code == 2 and match in said and "Traceback" not in said
