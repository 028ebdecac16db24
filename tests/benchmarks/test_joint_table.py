"""benchmarks/joint.py: what it measures, that it goes on, and that a budget that does not suffice is said."""

import joint as bench
import pytest

from budgetprune.cost import VlmShape, prefill_flops
from budgetprune.training.base_model import held_out, load_base
from budgetprune.training.joint_task import AnswersWithEnds, scores


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("joint")
    return out, bench.run(out, (0.4, 0.67), steps=1, images=4, seed=0, batch=2, choose=2)


def test_every_cell_spends_no_more_than_its_budget(rows):
    assert [(r["share"], r["arm"]) for r in rows[1]] == [(1.0, "full")] + [
        (s, a) for s in (0.4, 0.67) for a in bench.ARMS]
    shape = VlmShape.from_config(load_base()[0].config)
    full = rows[1][0]
    assert (full["keep"], full["layers"], full["of_full"]) == (64, 4, 1.0)
    assert full["flops"] == prefill_flops(shape, 64, 64, 5).total
    for r in rows[1][1:]:
        if r["arm"] == "layers" and r["share"] == 0.4:
            assert r["keep"] is None and r["accuracy"] is None
            continue
        assert r["of_full"] <= r["share"] and r["prefill_ms"] > 0 and 0 <= r["accuracy"] <= 1
        assert r["layers"] == 4 if r["arm"] == "tokens" else 1 <= r["layers"] <= 4
        pairs = bench.config_of(r["arm"], 1, 0).pairs(shape, r["share"], 4 if r["arm"] == "tokens" else 1)
        assert (r["keep"], r["layers"], r["flops"]) in [(p.keep, p.layers, p.flops) for p in pairs]


def test_what_is_measured_is_not_measured_again_and_is_a_table(rows):
    out, before = rows
    written = (out / bench.RESULTS).read_text()
    assert bench.run(out, (0.4, 0.67), steps=1, images=4, seed=0, batch=2, choose=2) == before
    assert (out / bench.RESULTS).read_text() == written and len(written.splitlines()) == 7
    assert bench.table(before).row_count == 7 and [row[-1] for row in bench.cells(before)][0] == "1.00x"


def test_a_cut_off_run_measures_what_is_missing_with_the_models_that_are_there(rows, monkeypatch):
    out, before = rows
    lines = (out / bench.RESULTS).read_text().splitlines(keepends=True)
    (out / bench.RESULTS).write_text("".join(lines[:-1]))
    weights = {f: f.stat().st_mtime_ns for f in out.glob("*/*.safetensors")}
    again = bench.run(out, (0.4, 0.67), steps=1, images=4, seed=0, batch=2, choose=2)
    assert {f: f.stat().st_mtime_ns for f in out.glob("*/*.safetensors")} == weights
    alike = ("arm", "share", "keep", "layers", "flops", "accuracy")
    assert [[r[k] for k in alike] for r in again] == [[r[k] for k in alike] for r in before]


def test_the_scores_are_those_that_the_held_out_accuracy_is_the_mean_of():
    model, processor = load_base()
    assert sum(scores(model, processor, images=8)) / 24 == held_out(model, processor, images=8)["accuracy"]
    assert len(scores(model, processor, split="train", images=3, batch=2)) == 9


def test_one_answer_of_each_image_and_its_end_are_learnt():
    processor = load_base()[1]
    inputs = AnswersWithEnds("digits", processor, 6, seed=1).__getitems__([0, 1, 2])
    learnt = [row[row != -100] for row in inputs["labels"]]
    words = [processor.tokenizer.convert_ids_to_tokens(row) for row in learnt]
    assert all(len(row) == 2 and row[0].isdigit() and row[1] == "</s>" for row in words)
