"""Two processes with half the batch each do what one does with all of it: DDP and FSDP2, over gloo on the CPU."""

import pytest
import ranks
import torch
import torch.distributed as dist
from tiny import TOKENS, make_llava

import budgetprune

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.work, (str(folder),), nprocs=ranks.RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks.RANKS)]


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how, lora", [("ddp", False), ("ddp lora", True), ("fsdp2", False)])
def test_two_processes_get_the_gradients_and_the_weights_of_one(results, how, lora):
    gradients, weights = ranks.two_steps(ranks.pruned_llava(lora)[0], ranks.batch_of())
    alone, _ = ranks.two_steps(ranks.pruned_llava(lora)[0], ranks.batch_of(0))
    for rank in results:
        assert_close(rank[how][0], gradients)
        assert_close(rank[how][1], weights)
    assert any((alone[name] - value).abs().max() > 1e-3 for name, value in gradients.items()), "halves must differ"


def test_a_sharded_model_prunes_as_a_whole_one_does(results):
    model, pruning = ranks.pruned_llava()
    ranks.two_steps(model, ranks.batch_of())
    with torch.no_grad():
        logits, kept = model.eval()(**ranks.batch_of()).logits, pruning.plan.kept
    for part, name in ((0, "logits"), (1, "kept")):
        ours = torch.cat([rank["fsdp2 logits"][part] for rank in results])
        torch.testing.assert_close(ours, (logits, kept)[part], atol=1e-3, rtol=1e-3, msg=name)
    assert logits.shape[1] == ranks.batch_of()["input_ids"].shape[1] - TOKENS + 5


def test_a_sharded_controller_is_saved_and_loaded_whole(results):
    saved = budgetprune.from_pretrained(make_llava(), results[0]["sharded"]).model.budget_pruner.state_dict()
    trained = {name.removeprefix("budget_pruner."): value for name, value in results[0]["fsdp2"][1].items()}
    for rank in results:
        for name, value in trained.items():
            assert torch.equal(saved[name], value) and torch.equal(rank["fsdp2 loaded"][name], value), name


def test_two_processes_train_a_pruner_and_leave_one_result(results, tmp_path):
    alone = ranks.train(tmp_path / "alone", 4)
    assert_close(results[0]["train_pruner"], alone)
    assert all(torch.equal(value, results[1]["train_pruner"][name])
               for name, value in results[0]["train_pruner"].items())
    written = budgetprune.from_pretrained(make_llava(), results[0]["run"]).selector.state_dict()
    assert all(torch.equal(value, written[name.removeprefix("selector.")])
               for name, value in results[0]["train_pruner"].items())


def test_an_interrupt_in_one_process_stops_both_at_one_step_and_they_go_on_to_the_same_bits(results):
    for rank in results:
        assert rank["stop"].startswith("stopped after step 2 of 4")
        assert all(torch.equal(value, rank["resumed"][name]) for name, value in rank["train_pruner"].items())
