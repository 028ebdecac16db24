"""Models whose weights accelerate keeps elsewhere: the same logits and tokens, however and whenever they are pruned."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tiny import make_batch, make_llava

import budgetprune

METHODS = ["adaptive", "fastv", "prumerge_plus", "uniform"]


def elsewhere(how, model, folder):
    if how == "cpu":
        return cpu_offload(model, execution_device="cpu")
    if how == "disk":
        return disk_offload(model, folder, execution_device="cpu")
    device_map = {"model.vision_tower": "disk", "model.multi_modal_projector": "disk", "lm_head": "cpu",
                  "model.language_model.embed_tokens": "cpu", "model.language_model.norm": "cpu",
                  "model.language_model.rotary_emb": "cpu",
                  **{f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}}
    if hasattr(model, "budget_pruner"):
        device_map["budget_pruner"] = "cpu"
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=folder)


@torch.no_grad()
@pytest.mark.parametrize("order", ["pruned then moved", "moved then pruned"])
@pytest.mark.parametrize("how", ["cpu", "disk", "device map"])
@pytest.mark.parametrize("method", METHODS)
def test_offloaded_weights_change_no_logit(tmp_path, method, how, order):
    batch = make_batch()
    torch.manual_seed(5)
    model = make_llava()
    budgetprune.prune(model, method, keep=4)
    logits, tokens = model(**batch).logits, model.generate(**batch, max_new_tokens=3, do_sample=False)
    controller = model.budget_pruner.state_dict()

    moved = make_llava()
    if order == "pruned then moved":
        budgetprune.prune(moved, method, keep=4)
        moved.budget_pruner.load_weights(controller)
        elsewhere(how, moved, tmp_path)
    else:
        elsewhere(how, moved, tmp_path)
        budgetprune.prune(moved, method, keep=4)
        moved.budget_pruner.load_weights(controller)
    assert any(p.device.type == "meta" for p in moved.model.vision_tower.parameters()), "nothing was moved"
    assert torch.equal(moved(**batch).logits, logits)
    assert torch.equal(moved.generate(**batch, max_new_tokens=3, do_sample=False), tokens)
