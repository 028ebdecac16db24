"""Records survive crashes, refuse nonsense and identify their cell."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from budgetprune.evaluation.record import Record, append, cell_key, environment, latest, read, wilson_interval

CELL = Record(task="digits", model="tiny", method="fastv", keep=8, method_options={"layer": 2}, accuracy=0.9,
              ci95=(0.85, 0.94), samples=200, kept_recall=0.8, prefill_flops=123456789, prefill_ms=1.5,
              decode_ms_per_token=0.4, peak_bytes=1 << 20, seed=3, commit="abc", torch="2.13.0", device="a device",
              time="2026-01-02T03:04:05+00:00")
FIELDS = ["task", "model", "method", "keep", "method_options", "accuracy", "ci95", "samples", "kept_recall",
          "prefill_flops", "prefill_ms", "decode_ms_per_token", "peak_bytes", "seed", "commit", "torch", "device",
          "time"]


def test_a_line_has_exactly_the_documented_fields():
    assert sorted(json.loads(CELL.to_json())) == sorted(FIELDS)
    assert sorted(json.loads(replace(CELL, kept_mean=7.5).to_json())) == sorted([*FIELDS, "kept_mean"])
    assert json.loads(replace(CELL, metrics={"f1": 0.8}).to_json())["metrics"] == {"f1": 0.8}


def test_a_record_comes_back_as_it_went(tmp_path):
    odd = replace(CELL, task="Ünïcode \u2028 \"quoted\"\n", kept_recall=None, prefill_flops=None, prefill_ms=None,
                  decode_ms_per_token=None, peak_bytes=None, method_options={"b": [1, {"c": None}], "a": "x"}, seed=-1)
    more = replace(CELL, kept_mean=7.5, metrics={"f1": 0.8, "yes_ratio": 0})
    for record in (CELL, odd, more):
        append(tmp_path / "new" / "records.jsonl", record)
    assert read(tmp_path / "new" / "records.jsonl") == [CELL, odd, more]


def test_an_absent_file_is_an_empty_list(tmp_path):
    assert read(tmp_path / "records.jsonl") == []


@pytest.mark.parametrize("cut", [1, 40, -3])
def test_a_torn_last_line_is_dropped_with_a_warning_and_repaired_by_the_next_append(tmp_path, cut):
    path, second = tmp_path / "records.jsonl", replace(CELL, keep=16)
    append(path, CELL)
    with open(path, "a") as file:
        file.write(second.to_json()[:cut])
    with pytest.warns(UserWarning, match="dropped a torn last line"):
        assert read(path) == [CELL]
    with pytest.warns(UserWarning, match="cut off a torn last line"):
        append(path, second)
    assert read(path) == [CELL, second]


def test_a_line_torn_inside_a_character_is_dropped_too(tmp_path):
    path = tmp_path / "records.jsonl"
    append(path, CELL)
    with open(path, "ab") as file:
        file.write('{"task": "é'.encode()[:-1])
    with pytest.warns(UserWarning, match="torn"):
        assert read(path) == [CELL]


def test_a_whole_line_that_lost_only_its_end_is_kept(tmp_path):
    path, second = tmp_path / "records.jsonl", replace(CELL, keep=16)
    path.write_text(CELL.to_json())
    assert read(path) == [CELL]
    append(path, second)
    assert read(path) == [CELL, second]


@pytest.mark.parametrize(("line", "words"), [
    ("{broken", "line 2"),
    ("[1]", "must be a JSON object, got list"),
    ('{"task": "digits"}', "missing accuracy"),
    (CELL.to_json()[:-1] + ', "colour": 1}', "unknown colour"),
    (CELL.to_json().replace('"keep": 8', '"keep": "8"'), "keep must be an int, got str"),
])
def test_a_bad_line_elsewhere_is_an_error_that_names_it(tmp_path, line, words):
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join([CELL.to_json(), line, CELL.to_json(), ""]))
    with pytest.raises(ValueError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value) and "line 2" in str(caught.value)


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"accuracy": 1.2}, ValueError, r"accuracy must be in \[0, 1\], got 1.2"),
    ({"accuracy": float("nan")}, ValueError, "accuracy must be finite"),
    ({"accuracy": 0.2}, ValueError, "ci95 must enclose accuracy 0.2"),
    ({"ci95": (0.1, 0.2, 0.3)}, ValueError, "ci95 must be"),
    ({"ci95": (0.85, None)}, TypeError, "ci95 must be a number, got NoneType"),
    ({"keep": 8.0}, TypeError, "keep must be an int, got float"),
    ({"keep": -1}, ValueError, "keep must be finite and at least 0, got -1"),
    ({"samples": None}, TypeError, "samples must be an int, got NoneType"),
    ({"prefill_ms": float("inf")}, ValueError, "prefill_ms must be finite"),
    ({"kept_recall": 2}, ValueError, "kept_recall must be in"),
    ({"method": ""}, ValueError, "method must not be empty"),
    ({"device": None}, TypeError, "device must be a str, got NoneType"),
    ({"method_options": {"x": {1, 2}}}, ValueError, "method_options must hold JSON values"),
    ({"metrics": {"f1": float("nan")}}, ValueError, r"metrics\['f1'\] must be finite"),
    ({"metrics": {"f1": "high"}}, TypeError, r"metrics\['f1'\] must be a number, got str"),
    ({"metrics": [0.8]}, TypeError, "metrics must be a dict, got list"),
    ({"method_options": None}, TypeError, "method_options must be a dict"),
    ({"time": "yesterday"}, ValueError, "yesterday"),
])
def test_nonsense_is_refused_by_name(change, error, words):
    with pytest.raises(error, match=words):
        replace(CELL, **change)


def test_the_key_tells_cells_apart_and_measurements_do_not_matter():
    same = replace(CELL, accuracy=0.86, prefill_ms=None, commit="def", device="b", time="", ci95=(0.8, 0.9))
    assert same.key() == CELL.key() == cell_key("digits", "tiny", "fastv", 8, 200, 3, {"layer": 2})
    for change in ({"task": "x"}, {"model": "x"}, {"method": "x"}, {"keep": 9}, {"samples": 9}, {"seed": 4},
                   {"method_options": {"layer": 3}}):
        assert replace(CELL, **change).key() != CELL.key()
    a, b = {"x": 1, "y": 2}, {"y": 2, "x": 1}
    assert replace(CELL, method_options=a).key() == replace(CELL, method_options=b).key()
    assert len({CELL.key(), same.key()}) == 1


def test_latest_keeps_the_newer_line_of_a_cell_in_its_first_place():
    again, other = replace(CELL, accuracy=0.91), replace(CELL, keep=16)
    assert latest([CELL, other, again]) == [again, other]


def _append_many(path, seed):
    for keep in range(40):
        append(path, replace(CELL, keep=keep, seed=seed))


def test_two_writers_do_not_tear_each_others_lines(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {(r.seed, r.keep) for r in read(path)} == {(seed, keep) for seed in (1, 2) for keep in range(40)}
    assert len(read(path)) == 80


def test_an_append_waits_until_another_writer_is_done(tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")
    path = tmp_path / "records.jsonl"
    with open(path, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = multiprocessing.get_context("spawn").Process(target=append, args=(path, CELL))
        writer.start()
        other.write(CELL.to_json()[:50].encode())  # half a line: an append that did not wait would cut it off
        other.flush()
        writer.join(1.5)
        assert writer.is_alive()
        other.write(CELL.to_json()[50:].encode() + b"\n")
    writer.join()
    assert writer.exitcode == 0 and read(path) == [CELL, CELL]


def test_wilson_interval_matches_its_definition_and_hand_answers():
    # Known: 5 of 10 gives 0.2366 .. 0.7634, 0 of 10 gives 0 .. 0.2775.
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    for n in (1, 7, 600):
        for hits in range(n + 1):
            low, high = wilson_interval(hits, n)
            assert 0 <= low <= hits / n <= high <= 1
            assert wilson_interval(n - hits, n) == pytest.approx((1 - high, 1 - low))
            for bound in (low, high):  # each end is where a normal test would just reject: the score equation
                error = (hits / n - bound) ** 2 - 1.959963984540054**2 * bound * (1 - bound) / n
                assert abs(error) < 1e-12


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(hits, n):
    with pytest.raises(ValueError, match="must be"):
        wilson_interval(hits, n)


def test_environment_fills_a_record():
    import torch

    here = environment("cpu")
    record = replace(CELL, **here)
    assert record.torch == torch.__version__ and record.commit and record.device and record.time


def test_environment_outside_a_checkout_names_the_version(monkeypatch):
    monkeypatch.setenv("PATH", "")
    commit = environment("cpu")["commit"]
    assert commit == "unknown" or commit.startswith("budgetprune ")
