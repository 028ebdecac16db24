"""The budget token in vision towers: against the towers' own layers run by hand, one image at a time."""

import copy

import pytest
import torch
from emulated_flash import emulated
from families import make_model
from torch.utils.flop_counter import FlopCounterMode

from budgetprune.pruners import BudgetEmbedding, VisionEncoderWithBudgetToken, VisionTokenController
from budgetprune.pruners.budget_token import POSITIONS, TokenCost

CLIP_LIKE = ["llava", "llava_siglip"]
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
TOWERS = CLIP_LIKE + QWEN
C = 32
BUDGET = torch.tensor([0.125, 0.75])


def tower_of(name, attention="sdpa"):
    model = make_model(name, attention)
    return model.model.visual if name in QWEN else model.model.vision_tower


def pixels_of(name):
    """(positional, keyword) arguments of two images; Qwen's differ in size."""
    if name not in QWEN:
        return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1)), {}
    grid = torch.tensor([[1, 8, 6], [1, 4, 8]])
    generator = torch.Generator().manual_seed(1)
    return torch.randn(int(grid.prod(1).sum()), 3 * 2 * 7 * 7, generator=generator), {"grid_thw": grid}


def alone(name, pixels, kwargs, image):
    """The arguments of one image."""
    if name not in QWEN:
        return pixels[image:image + 1], {}
    grid = kwargs["grid_thw"]
    return pixels.split(grid.prod(1).tolist())[image], {"grid_thw": grid[image:image + 1]}


def wrapped(name, tower=None, position="own", seed=0):
    torch.manual_seed(seed)
    return VisionEncoderWithBudgetToken(tower or tower_of(name), BudgetEmbedding(C), C, position=position)


def by_hand(name, tower, token, at, pixels, kwargs):
    """([n+1, C] of one image, what its merger or pooler gives), by the layers of the tower itself. token: [C]."""
    if name not in QWEN:
        x = tower.embeddings(pixels)[0]
        x = torch.cat([x, token[None]])[None]
        x = tower.pre_layrnorm(x) if name == "llava" else x
        for layer in tower.encoder.layers:
            x = layer(x, None)
        return (x if name == "llava" else tower.post_layernorm(x))[0], None
    from transformers.vision_utils import (
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
        get_vision_window_index,
    )

    grid, side = kwargs["grid_thw"], tower.spatial_merge_size
    x = tower.patch_embed(pixels)
    if name.startswith("qwen3"):
        index, weight = get_vision_interpolation_indices_and_weights(
            grid, num_grid_per_side=tower.num_grid_per_side, mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners, spatial_merge_size=side)
        x = x + (tower.pos_embed(index) * weight[:, :, None]).sum(1)
    turns = tower.rotary_pos_emb(x, get_vision_position_ids(grid, side))
    whole, windows, back = range(len(tower.blocks)), None, None
    if name == "qwen2_5_vl":
        order, windows = get_vision_window_index(grid, spatial_merge_size=side, window_size=tower.window_size,
                                                 patch_size=tower.patch_size)
        places = (4 * order[:, None] + torch.arange(4)).flatten()
        x, turns, whole, back = x[places], [t[places] for t in turns], tower.fullatt_block_indexes, order.argsort()
        windows = [*windows.tolist(), len(x) + 1]
        assert len(windows) > 3, "several windows"
    x = torch.cat([x, token[None]])
    end = {"own": [torch.ones_like(turns[0][:1]), torch.zeros_like(turns[1][:1])], "first": [t[:1] for t in turns],
           "last": [t[-1:] for t in turns]}[at]
    turns = [torch.cat(pair) for pair in zip(turns, end)]
    deep = []
    for index, block in enumerate(tower.blocks):
        bounds = [0, len(x)] if index in whole else windows
        parts = [block(x[a:b], cu_seqlens=torch.tensor([0, b - a], dtype=torch.int32),
                       position_embeddings=[t[a:b] for t in turns]) for a, b in zip(bounds, bounds[1:])]
        x = torch.cat(parts)
        if index in getattr(tower, "deepstack_visual_indexes", ()):
            deep.append(tower.deepstack_merger_list[len(deep)](x[:-1]))
    merged = tower.merger(x[:-1])
    return x, torch.cat([merged if back is None else merged[back], *deep])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", TOWERS)
def test_two_images_give_what_the_towers_own_layers_give_for_each(name, position, attention):
    tower = tower_of(name, attention)
    pixels, kwargs = pixels_of(name)
    encoder = wrapped(name, copy.deepcopy(tower), position)
    out = encoder(pixels, BUDGET, **kwargs)
    tokens = encoder.token.embedding(BUDGET)
    if position == "own":
        tokens = tokens + encoder.token.position
    elif name not in ("qwen2_vl", "qwen2_5_vl"):
        table = tower.pos_embed if name in QWEN else tower.embeddings.position_embedding
        tokens = tokens + table.weight[0 if position == "first" else -1]
    states, pooled = zip(*(by_hand(name, tower, tokens[i], position, *alone(name, pixels, kwargs, i)) for i in (0, 1)))
    close = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(out.budget_state, torch.stack([x[-1] for x in states]), **close)
    if name not in QWEN:
        assert out.last_hidden_state.shape == (2, 16 + (name == "llava") + 1, C)
        torch.testing.assert_close(out.last_hidden_state, torch.stack(states), **close)
        return
    torch.testing.assert_close(out.last_hidden_state, torch.cat(states), **close)
    sizes = (kwargs["grid_thw"].prod(1) // 4).tolist()
    levels = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
    for image, expected in enumerate(pooled):
        torch.testing.assert_close(torch.cat([level.split(sizes)[image] for level in levels]), expected, **close)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_the_tower_by_itself_is_bit_equal_and_nothing_stays_in_it(name):
    tower = tower_of(name)
    pixels, kwargs = pixels_of(name)
    before, hooks = tower(pixels, **kwargs), hooks_of(tower)
    encoder = wrapped(name, tower)
    with_hooks = tower(pixels, **kwargs)
    encoder(pixels, BUDGET, **kwargs)
    assert encoder.remove() is tower and hooks_of(tower) == hooks
    for after in (with_hooks, tower(pixels, **kwargs)):
        assert torch.equal(after.last_hidden_state, before.last_hidden_state)
        assert before.pooler_output is None or torch.equal(after.pooler_output, before.pooler_output)
    with pytest.raises(RuntimeError, match="the budget token has been removed from this tower"):
        encoder(pixels, BUDGET, **kwargs)


def hooks_of(tower):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(m.__dict__)) for m in tower.modules()]


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_each_image_sees_its_own_budget_only(name):
    encoder = wrapped(name)
    pixels, kwargs = pixels_of(name)
    one, two = (encoder(pixels, torch.tensor([0.5, b]), **kwargs) for b in (0.1, 0.9))
    (first, second), (same, other) = (parts_of(name, x.last_hidden_state, kwargs) for x in (one, two))
    assert torch.equal(first, same)
    assert not torch.allclose(second[:-1], other[:-1], atol=1e-4), "patches see the budget, too"
    assert not torch.allclose(second[-1], other[-1], atol=1e-4)


def parts_of(name, states, kwargs):
    return states.split((kwargs["grid_thw"].prod(1) + 1).tolist()) if name in QWEN else states


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_gradients_pass_the_frozen_tower_to_embedding_and_position(name, checkpointing):
    encoder = wrapped(name)
    tower = encoder.vision_tower.requires_grad_(False).train()
    pixels, kwargs = pixels_of(name)

    def gradients():
        out, worth = encoder(pixels, BUDGET, **kwargs), torch.Generator().manual_seed(0)
        states = out.pooler_output if name in QWEN else out.last_hidden_state[:, :-1]
        (states * torch.randn(states.shape, generator=worth)).sum().backward()
        found = {n: p.grad.clone() for n, p in encoder.token.named_parameters()}
        encoder.token.zero_grad()
        return found

    plain = gradients()
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in plain.values())
    assert not any(p.grad is not None for p in tower.parameters())
    if checkpointing:
        tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for n, again in gradients().items():
            torch.testing.assert_close(again, plain[n])


@torch.no_grad()
@pytest.mark.parametrize("name", QWEN)
def test_flash_attention_gets_the_longer_sequences(name):
    model = make_model(name)
    encoder = wrapped(name, model.model.visual)
    pixels, kwargs = pixels_of(name)
    expected = encoder(pixels, BUDGET, **kwargs)
    with emulated(model):
        found = encoder(pixels, BUDGET, **kwargs)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", QWEN)
def test_a_video_has_a_token_behind_each_frame_and_its_state_is_their_mean(name):
    encoder = wrapped(name)
    pixels = torch.randn(48, 3 * 2 * 7 * 7, generator=torch.Generator().manual_seed(2))
    video = encoder(pixels, torch.tensor([0.3]), grid_thw=torch.tensor([[2, 4, 6]]))
    frames = encoder(pixels, torch.tensor([0.3, 0.3]), grid_thw=torch.tensor([[1, 4, 6], [1, 4, 6]]))
    torch.testing.assert_close(video.last_hidden_state, frames.last_hidden_state)
    torch.testing.assert_close(video.budget_state[0], frames.budget_state.mean(0))
    assert len(video.last_hidden_state) == 48 + 2


@torch.no_grad()
def test_a_pooling_head_does_not_see_the_token():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    tower = SiglipVisionModel(SiglipVisionConfig(hidden_size=C, intermediate_size=64, num_hidden_layers=2,
                                                 num_attention_heads=4, image_size=28, patch_size=7)).eval()
    encoder = wrapped("llava_siglip", tower)
    out = encoder(torch.randn(2, 3, 28, 28), BUDGET)
    encoder.remove()
    assert torch.equal(out.pooler_output, tower.head(out.last_hidden_state[:, :-1]))
    assert torch.equal(out.budget_state, out.last_hidden_state[:, -1])


@torch.no_grad()
def test_copies_act_on_their_own_tower():
    encoder = wrapped("qwen2_5_vl")
    other = copy.deepcopy(encoder)
    other.token.position.add_(1.0)
    pixels, kwargs = pixels_of("qwen2_5_vl")
    expected, moved = (x(pixels, BUDGET, **kwargs).last_hidden_state for x in (encoder, other))
    assert not torch.allclose(expected, moved)
    other.remove()
    assert torch.equal(encoder(pixels, BUDGET, **kwargs).last_hidden_state, expected)


@torch.no_grad()
def test_a_controller_reads_the_last_position_and_never_keeps_it():
    encoder = wrapped("llava")
    hidden = encoder(*pixels_of("llava")[:1], BUDGET).last_hidden_state
    controller = VisionTokenController(C, 16, fusion="encoder").eval()
    for keep in (1, 5, 16, 17, 99, [3, 40], 1.0):
        out = controller(hidden[:, 1:], keep)
        assert out.logits.shape == out.gate.shape == (2, 16) and out.kept.max() < 16
    apart = controller(hidden[:, 1:-1], 5, state=hidden[:, -1])
    assert torch.equal(apart.logits, controller(hidden[:, 1:], 5).logits)
    changed = hidden.clone()
    changed[:, -1] = changed[:, -1].flip(1)
    assert not torch.allclose(controller(changed[:, 1:], 5).logits, apart.logits)
    drawn = controller.train()(hidden[:, 1:], 17, key=torch.tensor([3, 0]))
    assert drawn.kept.tolist() == [list(range(16))] * 2


@torch.no_grad()
@pytest.mark.parametrize("name, tokens", [("llava", 16), ("llava_siglip", 16), ("qwen2_vl", 12), ("qwen2_5_vl", 12),
                                          ("qwen3_vl", 12)])
def test_the_cost_of_the_token_is_what_torch_counts(name, tokens):
    tower = tower_of(name, "eager")  # the counter knows nothing of the CPU's fused attention
    pixels, kwargs = alone(name, *pixels_of(name), 0)
    stock = counted(lambda: tower(pixels, **kwargs))
    encoder = wrapped(name, tower)
    more = counted(lambda: encoder(pixels, BUDGET[:1], **kwargs)) - stock
    assert TokenCost.of(tower).flops(tokens) + encoder.token.flops() == more


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_bad_arguments_are_refused():
    tower = tower_of("llava")
    with pytest.raises(ValueError, match="vision_hidden_size must be 32, the width of the tower's tokens, got 16"):
        VisionEncoderWithBudgetToken(tower, BudgetEmbedding(16), 16)
    with pytest.raises(ValueError, match="position must be one of 'own', 'first', 'last', got 'middle'"):
        VisionEncoderWithBudgetToken(tower, BudgetEmbedding(C), C, position="middle")
    with pytest.raises(ValueError, match="vision_tower must be one of clip_vision_model, .*, got internvl_vision"):
        VisionEncoderWithBudgetToken(make_model("internvl").model.vision_tower, BudgetEmbedding(C), C)
    with pytest.raises(ValueError, match="to take a budget token, got Linear"):
        VisionEncoderWithBudgetToken(torch.nn.Linear(2, 2), BudgetEmbedding(C), C)
    assert all(not m._forward_hooks for m in tower.modules()), "what was refused left hooks"
    encoder = wrapped("llava", tower)
    with pytest.raises(ValueError, match="vision_tower must take one budget token, it has a hook for one already"):
        wrapped("llava", tower)
    with pytest.raises(ValueError, match="budget must have 2 entries, one for each image, got 3"):
        encoder(torch.zeros(2, 3, 28, 28), torch.zeros(3))
    qwen = wrapped("qwen2_vl")
    with pytest.raises(ValueError, match="budget must have 2 entries, one for each image, got 1"):
        pixels, kwargs = pixels_of("qwen2_vl")
        qwen(pixels, BUDGET[:1], **kwargs)
