"""What a budget saves is said once, at INFO."""

import logging

import pytest
import torch
from families import make_inputs, make_model
from torch.utils.flop_counter import FlopCounterMode

import budgetprune
from budgetprune.models import notice


@pytest.fixture(autouse=True)
def heard():
    """The command line silences this logger in its process, and so in other tests."""
    logger = logging.getLogger("budgetprune.models.notice")
    before = logger.level
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(before)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="budgetprune")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("budgetprune")]


@torch.no_grad()
def test_a_budget_is_told_at_its_first_use_only(said):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, words=(5, 5))
    with budgetprune.prune(model, "uniform", keep=4) as pruning:
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert len(said()) == 1
        assert said()[0].startswith("uniform kept 4 of 16 image tokens (mean of 2), decoder prefill FLOPs -")
        pruning.set_keep([1, 8])
        model(**inputs)
    assert len(said()) == 2 and said()[1].startswith("uniform kept 4.5 of 16 image tokens (mean of 2)")


@torch.no_grad()
@pytest.mark.parametrize("method, keep", [("uniform", 4), ("fastv", 4), ("pyramiddrop", 2)])
def test_the_saving_is_that_of_the_counted_operations(said, method, keep):
    model = make_model("llava", attention="eager")
    inputs, _ = make_inputs("llava", model, images=(1,), words=(5,))

    def counted():
        with FlopCounterMode(display=False) as counter:
            model(**inputs, logits_to_keep=1)
        return sum(counter.get_flop_counts()["LlavaForConditionalGeneration.model.language_model"].values())

    whole = counted()
    with budgetprune.prune(model, method, keep=keep):
        share = counted() / whole
    (line,) = said()
    assert f"kept {keep} of 16 image tokens, decoder" in line
    assert abs(int(line.split()[-2]) - 100 * (share - 1)) <= 1.0


@torch.no_grad()
def test_of_two_methods_each_says_its_own(said):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model, images=(1,), words=(5,))
    with budgetprune.prune(model, "uniform+fastv", keep=(8, 2)):
        model(**inputs)
    assert [line.split(" image")[0] for line in said()] == ["uniform kept 8 of 16", "fastv kept 2 of 8"]


@torch.no_grad()
def test_nothing_is_said_where_nobody_listens_or_nothing_is_dropped(caplog):
    model = make_model("llava")
    inputs, _ = make_inputs("llava", model)
    with budgetprune.prune(model, "uniform", keep=4):
        model(**inputs)
    caplog.set_level(logging.INFO, logger="budgetprune")
    with budgetprune.prune(model, "uniform", keep=100):
        model(**inputs)
    assert not caplog.records


def test_of_a_decoder_whose_cost_is_not_known_the_count_is_said(said):
    from types import SimpleNamespace

    pruner = SimpleNamespace(told=False, selector=SimpleNamespace(name="uniform"))
    notice.tell(pruner, SimpleNamespace(model_type="other", kv_lora_rank=8), 1, 16, 4, [20], [8])
    assert said() == ["uniform kept 4 of 16 image tokens"] and pruner.told
