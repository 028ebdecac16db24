"""Every method around an attention that never gives its matrix and takes FlashAttention's masks, on a CPU."""

import pytest
import torch
from tiny import make_batch, make_llava
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import budgetprune
from budgetprune.selectors.base import find

FLASH = "flash_attention_2"
METHODS = [name for name in budgetprune.methods() if name != "none"]


def without_matrix(module, query, key, value, attention_mask, scaling=None, is_causal=None, **kwargs):
    """What flash attention computes, from its own arguments: a mask [B, S] of what exists, or none."""
    causal = module.is_causal if is_causal is None else is_causal
    length, total = query.shape[2], key.shape[2]
    seen = torch.ones(length, total, dtype=torch.bool)
    seen = (seen.tril(total - length) if causal else seen)[None, None]
    if attention_mask is not None:
        assert attention_mask.dim() == 2, "flash attention knows no other mask"
        seen = seen & attention_mask[:, None, None, -total:].bool()
    seen = seen | torch.eye(total, dtype=torch.bool)[total - length:]  # padding sees itself; nobody reads what it sees
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scaling,
                                                           enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch):
    """A model that believes to have FlashAttention; loading it would ask for the package."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FLASH, without_matrix)
    model = make_llava()
    model.config._attn_implementation = FLASH
    assert model.model.language_model.config._attn_implementation == FLASH
    assert model.model.vision_tower.config._attn_implementation == FLASH
    return model


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_needs_the_attention_matrix_nor_another_mask_than_flash_attention_has(flash, method, padding):
    batch, said = make_batch(padding=padding), []
    for model in (make_llava(), flash):
        torch.manual_seed(2)
        with budgetprune.prune(model, method, keep=5) as pruning:
            logits = model(**batch).logits
            tokens = model.generate(**batch, max_new_tokens=3, do_sample=False) if padding == "left" else None
            exists = batch["attention_mask"].bool() if pruning.valid is None else pruning.valid
            said.append((logits[exists], pruning.plan.kept, tokens))
    torch.testing.assert_close(said[1][0], said[0][0], atol=1e-4, rtol=1e-4)
    assert torch.equal(said[1][1], said[0][1])
    assert tokens is None or torch.equal(said[1][2], said[0][2])


@pytest.mark.parametrize("method", [name for name in METHODS if find(name).trainable])
def test_gates_of_training_need_no_other_mask_either(flash, method):
    batch, losses = make_batch(labels=True), []
    for model in (make_llava(), flash):
        torch.manual_seed(2)
        budgetprune.prune(model.train(), method, keep=5)
        torch.manual_seed(3)
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
