"""Running cells: what a record says is what the model did, and a run that was cut off goes on."""

import pytest
import torch

import budgetprune
from budgetprune import tasks
from budgetprune.evaluation import answers, measure, pictures, record
from budgetprune.evaluation.run import EvalConfig, evaluate, prepare
from budgetprune.training.base_model import build_base

CONFIG = EvalConfig(["none", "uniform", "fastv", "prumerge"], [8, None], samples=12, batch=8, latency_batch=4, images=2)


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    return (*build_base(), tasks.build("digits"))


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    seen = []
    evaluate(*digits, out, CONFIG, model_name="untrained", tell=lambda *values: seen.append(values))
    return out, seen


def test_every_cell_is_one_record(finished):
    out, seen = finished
    records = record.read(out / "records.jsonl")
    assert [(r.method, r.keep) for r in records[:4]] == [("none", 64), ("uniform", 8), ("fastv", 8), ("prumerge", 8)]
    own = records[4]
    assert own.method == "prumerge" and own.method_options == {"count": "own"} and own.keep == round(own.kept_mean)
    assert [cell for cell, done, total in seen] == ["none K=64", "uniform K=8", "fastv K=8", "prumerge K=8",
                                                   "prumerge own count", "done"]
    # Of four layers two see all 64 tokens and two see 8; other methods have no mean beside K.
    assert [r.layer_mean for r in records] == [None, None, 36.0, None, None]
    for r in records:
        assert r.samples == 12 and r.ci95[0] <= r.accuracy <= r.ci95[1] and r.task == "digits"
        assert r.prefill_ms > 0 and r.decode_ms_per_token >= 0 and r.peak_bytes > 0 and r.commit and r.device


def test_recall_counts_the_asked_digits_patches(digits, finished):
    from budgetprune.selectors.uniform import lattice

    samples = digits[2].samples("test", 12, 0)
    kept = set(lattice(8, 8, 8))
    expected = sum(len(kept & set(s.relevant)) / 4 for s in samples) / 12
    by_method = {r.method: r for r in record.read(finished[0] / "records.jsonl")}
    assert by_method["uniform"].kept_recall == pytest.approx(expected)
    assert by_method["none"].kept_recall == 1.0


def test_a_method_behind_the_projector_pays_for_all_tokens_there(digits, tmp_path):
    from budgetprune.cost import VlmShape, prefill_flops
    from budgetprune.selectors import build

    config = EvalConfig(["divprune"], [8], samples=3, latency_batch=0, images=0)
    (cell,) = evaluate(*digits, tmp_path, config, model_name="untrained")
    shape = VlmShape.from_config(digits[0].config)
    text = prepare(digits[1], digits[2].samples("test", 1, 0), digits[0])["input_ids"].shape[1] - 64
    own = build("divprune").flops(64, shape.decoder.hidden, 8)
    assert cell.prefill_flops == prefill_flops(shape, 64, 8, text, projected="all", selector_flops=own).total


def test_recorded_flops_are_what_torch_counts(digits, finished):
    """Within one per cent, batch 1, attention by its formula (the CPU's fused kernel is invisible to the counter)."""
    from torch.utils.flop_counter import FlopCounterMode

    model, processor, task = digits
    inputs = prepare(processor, task.samples("test", 1, 0), model)
    records = {r.method: r for r in record.read(finished[0] / "records.jsonl") if not r.method_options}
    model.set_attn_implementation("eager")
    try:
        for method in ("none", "uniform", "fastv"):
            with budgetprune.prune(model, method, keep=8 if method != "none" else 64):
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    model(**inputs, logits_to_keep=1)
            assert records[method].prefill_flops == pytest.approx(counter.get_total_flops(), rel=0.01), method
    finally:
        model.set_attn_implementation("sdpa")


def test_pictures_show_what_was_kept(finished):
    shots = pictures.read(finished[0])
    assert len(shots) == 2 * 5 and {p.image for p in shots} == {"images/test-0-0.png", "images/test-0-1.png"}
    uniform = next(p for p in shots if p.method == "uniform")
    assert len(uniform.kept) == 8 and uniform.grid == (8, 8) and uniform.question.startswith("which digit is ")
    assert all((finished[0] / p.image).read_bytes().startswith(b"\x89PNG") for p in shots)


def test_a_run_that_was_cut_off_goes_on(digits, tmp_path):
    model = digits[0]
    calls = []

    def stop(cell, done, total):
        calls.append(cell)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*digits, tmp_path, CONFIG, model_name="untrained", tell=stop)
    assert len(record.read(tmp_path / "records.jsonl")) == 2
    assert "budget_pruner" not in model._modules
    before = (tmp_path / "records.jsonl").read_text()
    evaluate(*digits, tmp_path, CONFIG, model_name="untrained")
    after = (tmp_path / "records.jsonl").read_text()
    assert after.startswith(before) and len(record.read(tmp_path / "records.jsonl")) == 5
    evaluate(*digits, tmp_path, CONFIG, model_name="untrained")
    assert (tmp_path / "records.jsonl").read_text() == after


def test_an_error_inside_a_cell_surfaces_and_leaves_the_model_whole(digits, tmp_path):
    config = EvalConfig(["fastv"], [8], options={"fastv": {"layer": 9}}, samples=2, latency_batch=0)
    with pytest.raises(ValueError, match=r"layer must be in \[1, 3\]"):
        evaluate(*digits, tmp_path, config, model_name="untrained")
    assert "budget_pruner" not in digits[0]._modules and not (tmp_path / "records.jsonl").exists()


def test_trained_methods_need_their_folder(digits, tmp_path):
    with pytest.raises(ValueError, match="adaptive is trained: name the folder"):
        EvalConfig(["adaptive"], [8])
    with pytest.raises(FileNotFoundError, match="no budgetprune_config.json"):
        config = EvalConfig(["adaptive"], [8], {"adaptive": tmp_path}, samples=2)
        evaluate(*digits, tmp_path / "run", config, model_name="untrained")


@pytest.mark.parametrize("arguments, match", [
    ({"methods": ["nope"], "budgets": [8]}, "unknown method 'nope'"),
    ({"methods": ["none"], "budgets": [8], "samples": 0}, "samples must be at least 1, got 0"),
    ({"methods": ["none"], "budgets": [8], "batch": 2.5}, "batch must be an int, got 2.5"),
    ({"methods": ["none"], "budgets": [8], "seed": -1}, r"seed must be in \[0, 9223372036854775807\], got -1"),
    ({"methods": [3], "budgets": [8]}, "method must be a name of a method, got 3"),
    ({"methods": [], "budgets": [8]}, r"methods must be a sequence of at least one name, got \[\]"),
    ({"methods": "uniform", "budgets": [8]}, "methods must be a sequence of at least one name, got 'uniform'"),
    ({"methods": ["uniform"], "budgets": []}, "budgets must name at least one count, got none"),
    ({"methods": ["uniform"], "budgets": ["8"]}, "budgets must be an int, got '8'"),
    ({"methods": ["uniform"], "budgets": [0]}, "budgets must be at least 1, got 0"),
    ({"methods": ["none", "uniform", "fastv"], "budgets": [None]}, "budgets must name a count where no method has its "
     "own, got only their own of uniform, fastv"),
    ({"methods": ["uniform"], "budgets": [8], "pruners": {"adaptive": "there"}}, "pruners must be of methods that are "
     "evaluated, uniform; got there, which is of adaptive"),
])
def test_a_bad_configuration_is_refused(arguments, match):
    with pytest.raises((TypeError, ValueError), match=match):
        EvalConfig(**arguments)


def test_a_method_with_its_own_count_may_stand_beside_one_without():
    assert EvalConfig(["uniform", "prumerge"], [None]).cells(64) == [("prumerge", None)]
    assert EvalConfig(["none"], []).cells(64) == [("none", 64)]


def test_every_answer_is_a_line_beside_the_records(digits, finished):
    said, task = answers.read(finished[0]), digits[2]
    samples = task.samples("test", 12, 0)
    for r in record.read(finished[0] / "records.jsonl"):
        own = said[r.key()]
        assert list(own) == [str(number) for number in range(12)] and r.metrics is None
        assert sum(a.score for a in own.values()) / 12 == r.accuracy
        assert all(a.score is task.score(a.prediction, s) for a, s in zip(own.values(), samples))


def test_a_budget_beyond_the_image_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match=r"budgets must be in \[1, N=64\], got 65"):
        evaluate(*digits, tmp_path, EvalConfig(["uniform"], [65], samples=2), model_name="untrained")


def test_median_ms_leaves_warm_up_out():
    import time

    calls = []

    def call():
        calls.append(None)
        time.sleep(0.05 if len(calls) <= 2 else 0.002)

    assert measure.median_ms(call, torch.device("cpu"), warmup=2, repeats=5) < 25
    assert len(calls) == 7


def test_peak_bytes_sees_a_temporary_tensor():
    class Spends(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size

        def forward(self, input_ids, **options):
            return (torch.zeros(self.size) + 1).sum()

    small, large = (measure.peak_bytes(Spends(n), {"input_ids": torch.zeros(1)}) for n in (1_000, 1_000_000))
    assert 2 * 4 * 999_000 * 0.9 < large - small < 2 * 4 * 999_000 * 1.1


def test_cells_of_two_pruners_are_not_mistaken_for_one_another(digits, tmp_path):
    model, records = digits[0], tmp_path / "run"
    for number in range(2):
        torch.manual_seed(number)
        with budgetprune.prune(model, "adaptive", keep=8) as pruning:
            pruning.save_pretrained(tmp_path / str(number))
        folders = {"adaptive": tmp_path / str(number)}
        config = EvalConfig(["adaptive"], [8], folders, samples=6, latency_batch=0, images=0)
        evaluate(*digits, records, config, model_name="untrained")
    first, second = record.read(records / "records.jsonl")
    assert first.method_options["weights"] != second.method_options["weights"]
    assert first.method_options["estimator"] == "race"


def test_beginning_anew_keeps_the_old_records_beside(digits, tmp_path):
    config = EvalConfig(["uniform"], [8], samples=3, latency_batch=0, images=1)
    for resume in (True, False):
        evaluate(*digits, tmp_path, config, model_name="untrained", resume=resume)
    assert len(record.read(tmp_path / "records.jsonl")) == len(record.read(tmp_path / "records.jsonl.old")) == 1


def test_a_torn_line_of_pictures_is_cut_off(digits, tmp_path):
    for keep in (8, 9):
        config = EvalConfig(["uniform"], [keep], samples=3, latency_batch=0, images=1)
        if keep == 9:
            with open(tmp_path / "pictures.jsonl", "a") as file:
                file.write('{"image": "images/te')
            with pytest.warns(UserWarning, match="cut off a torn last line"):
                evaluate(*digits, tmp_path, config, model_name="untrained")
        else:
            evaluate(*digits, tmp_path, config, model_name="untrained")
    assert [p.keep for p in pictures.read(tmp_path)] == [8, 9]


def test_a_folder_of_another_method_is_refused(digits, tmp_path):
    with budgetprune.prune(digits[0], "fastv", keep=8) as pruning:
        pruning.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a pruner of fastv, not of adaptive"):
        config = EvalConfig(["adaptive"], [8], {"adaptive": tmp_path}, samples=2)
        evaluate(*digits, tmp_path / "run", config, model_name="untrained")
