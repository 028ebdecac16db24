"""Two processes with half a step's samples each do what one does with all of them: DDP and FSDP2, over gloo."""

import json

import pytest
import run_ranks
import torch
import torch.distributed as dist
from conversation_files import digits_rows

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits_rows(folder, broken=(0, 5, 7))
    return folder


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_ranks.work, (str(folder), str(data)), nprocs=run_ranks.RANKS)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(run_ranks.RANKS)]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Runs in one process, with twice the samples at a time."""
    folder = tmp_path_factory.mktemp("alone")
    cases = ("pruner", "lora", "inside")
    return {case: run_ranks.train(data, folder / case, case, micro_batch=4)[:3] for case in cases}


def assert_same_run(two, one):
    """Curves and weights to what float32 loses in sums of another order; counts and noise to the bit, or the curves
    would part at the first step."""
    assert [row["loss"] for row in two[1]] == pytest.approx([row["loss"] for row in one[1]], rel=1e-5)
    assert [row["learning_rate"] for row in two[1]] == [row["learning_rate"] for row in one[1]]
    assert two[2] == one[2] and two[0].keys() == one[0].keys()
    for name, value in one[0].items():
        if not name.endswith("head.2.bias"):  # no gradient but rounding, which Adam makes large
            torch.testing.assert_close(two[0][name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_two_processes_have_the_curve_of_one_with_twice_the_batch(results, alone):
    """LoRA is trained, too, and rows without an image are; and a budget token inside the encoder."""
    for case in ("lora", "inside"):
        for rank in results[1]:
            assert_same_run(rank[case], alone[case])
        first, second = (rank[case][0] for rank in results[1])
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_first_process_names_what_both_skipped(results, alone):
    folder, _ = results
    rows = {case: [json.loads(line) for line in (folder / case / "skipped.jsonl").read_text().splitlines()]
            for case in (*alone, "fsdp")}
    assert rows["fsdp"] == rows["lora"]
    for case in alone:
        assert len(rows[case]) == alone[case][2] > 0
        assert [row["position"] for row in rows[case]] == sorted(row["position"] for row in rows[case])
    met = {row["position"] % 4 // 2 for own in rows.values() for row in own}
    assert met == {0, 1}, "both processes must have met a broken image"


def test_ctrl_c_in_one_process_saves_and_stops_both_and_they_go_on_as_if_nothing_had_been(results, alone):
    for rank in results[1]:
        assert rank["stop"].startswith("stopped after step 3 of 4")
        assert_same_run(rank["resumed"], alone["pruner"])
        assert rank["parameters"] == {"Parameter"}


def test_weights_divided_by_fsdp2_are_trained_stopped_and_kept_as_whole_ones_are(results, alone):
    folder, ranks = results
    for rank in ranks:
        assert rank["fsdp parameters"] == {"DTensor"}
        assert rank["fsdp stop"].startswith("stopped after step 3 of 4")
        assert_same_run(rank["fsdp resumed"], alone["lora"])
    written = {path.name for path in (folder / "fsdp").iterdir()}
    assert {"adapter_model.safetensors", "budgetprune_model.safetensors"} <= written and "checkpoints" not in written
