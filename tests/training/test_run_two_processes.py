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
    digits_rows(folder, broken=(5,))
    return folder


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_ranks.work, (str(folder), str(data)), nprocs=run_ranks.RANKS)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(run_ranks.RANKS)]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Each case in one process, with twice the samples at a time."""
    folder = tmp_path_factory.mktemp("alone")
    return {case: run_ranks.train(data, folder / case, case, micro_batch=4)[:3] for case in run_ranks.CASES}


def assert_same_run(two, one):
    """Curves and weights to what float32 loses in sums of another order; counts and noise to the bit, or the curves
    would part at the first step."""
    assert [row["loss"] for row in two[1]] == pytest.approx([row["loss"] for row in one[1]], rel=1e-5)
    assert [row["learning_rate"] for row in two[1]] == [row["learning_rate"] for row in one[1]]
    assert two[2] == one[2] and two[0].keys() == one[0].keys()
    for name, value in one[0].items():
        if not name.endswith("head.2.bias"):  # no gradient but rounding, which Adam makes large
            torch.testing.assert_close(two[0][name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("case", run_ranks.CASES)
def test_two_processes_have_the_curve_of_one_with_twice_the_batch(results, alone, case):
    for rank in results[1]:
        assert_same_run(rank[case], alone[case])
    first, second = (rank[case][0] for rank in results[1])
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_first_process_names_what_both_skipped(results, alone):
    folder, _ = results
    for case in run_ranks.CASES:
        rows = [json.loads(line) for line in (folder / case / "skipped.jsonl").read_text().splitlines()]
        assert len(rows) == alone[case][2] > 0
        assert [row["position"] for row in rows] == sorted(row["position"] for row in rows)
    positions = [row["position"] for case in run_ranks.CASES
                 for row in map(json.loads, (folder / case / "skipped.jsonl").read_text().splitlines())]
    assert {position % 4 // 2 for position in positions} == {0, 1}, "both processes must have met a broken image"


def test_ctrl_c_in_one_process_saves_and_stops_both_and_they_go_on_to_the_same_bits(results):
    for rank in results[1]:
        assert rank["stop"].startswith("stopped after step 3 of 4")
        for name, value in rank["pruner"][0].items():
            assert torch.equal(rank["resumed"][0][name], value), name
        assert rank["resumed"][2] == rank["pruner"][2]


def test_weights_divided_by_fsdp2_train_as_whole_ones_do(results, alone):
    for rank in results[1]:
        assert rank["fsdp parameters"] == {"DTensor"} and rank["parameters"] == {"Parameter"}
        assert_same_run(rank["fsdp pruner"], alone["pruner"])


def test_a_run_with_divided_weights_is_stopped_goes_on_and_keeps_no_frozen_weights(results, alone):
    folder, ranks = results
    for rank in ranks:
        assert rank["fsdp stop"].startswith("stopped after step 3 of 4")
        assert_same_run(rank["fsdp resumed"], alone["lora"])
    written = {path.name for path in (folder / "fsdp-broken").iterdir()}
    assert {"adapter_model.safetensors", "budgetprune_model.safetensors"} <= written and "checkpoints" not in written
