"""What every compressor promises, asked of all that are registered."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import budgetprune
from budgetprune import catalog, compress, selectors
from budgetprune.compress import Compressor, Site, priced
from budgetprune.cost import DecoderShape, VlmShape
from budgetprune.cost.shapes import TowerShape, known
from budgetprune.models.base import family_of
from budgetprune.models.question import question_states
from budgetprune.selectors import Selector, TokenView

COMPRESSORS = compress.available()
SITE = Site(width=32, grid=(6, 6), tower_width=24, depth=24, text_width=20)


def made(name, site=SITE, keep=4, **options):
    torch.manual_seed(0)
    compressor = catalog.build(name, **options)
    compressor.bind(site, keep)
    return compressor


def looked_at(compressor, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    site = compressor.site
    layers = len(compressor.heard(site.depth))
    return (torch.randn(batch, site.tokens, site.width, generator=generator),
            torch.randn(batch, site.tokens, layers * site.tower_width, generator=generator) if layers else None,
            torch.randn(batch, site.text_width, generator=generator) if "text" in compressor.needs else None)


@pytest.mark.parametrize("keep", [1, 4, 9])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_exactly_k_tokens_come_out_as_wide_as_the_features(name, keep):
    compressor = made(name, keep=keep)
    assert compressor(*looked_at(compressor)).shape == (3, keep, 32)


@torch.no_grad()
@pytest.mark.parametrize("name", COMPRESSORS)
def test_an_image_is_judged_alone_whatever_its_batch(name):
    compressor = made(name)
    inputs = looked_at(compressor)
    together = compressor(*inputs)
    for b in range(3):
        one = compressor(*(None if x is None else x[b:b + 1] for x in inputs))
        torch.testing.assert_close(one[0], together[b], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_operations_are_those_that_torch_counts(name):
    for keep in (1, 4, 9):
        compressor = made(name, keep=keep)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            compressor(*looked_at(compressor, batch=2))
        expected = 2 * compressor.flops(36, 32, keep)
        if name == "pooling_projector":  # its averages are no matrix product
            assert counter.get_total_flops() == 0 and expected == 2 * 2 * 36 * 32
        else:
            assert counter.get_total_flops() == expected


def test_reading_the_question_costs_what_torch_counts():
    from tiny import make_batch, make_llava

    model, batch = make_llava(), make_batch(text=(5, 5))
    shape = DecoderShape.from_config(model.config.text_config)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        question_states(model, family_of(model), batch)
    assert counter.get_total_flops() == 2 * made("quecc").asking_flops(6, shape)  # BOS and five words, two rows
    assert made("resampler").asking_flops(6, shape) == 0


def test_the_price_in_a_model_of_known_shape_is_that_of_a_compressor_made_for_it():
    shape = VlmShape(TowerShape(24, 32, 64, 4, 84, 14), DecoderShape(2, 20, 40, 4, 4, 5, 100))
    site = Site(32, (6, 6), 32, 24, 20)
    for name in COMPRESSORS:
        compressor = made(name, site)
        expected = compressor.flops(36, 32, 4) + compressor.asking_flops(7, shape.decoder)
        assert priced(catalog.build(name), shape, 4, 7) == expected
    large = priced(catalog.build("quecc"), known("llava-1.5-7b"), 36, 50)
    assert large > 12e9 * 50  # the language model reads fifty words


@pytest.mark.parametrize("name", COMPRESSORS)
def test_its_plan_says_which_patches_each_token_is_made_of(name):
    compressor = made(name)
    plan = compressor.plan(TokenView(torch.zeros(2, 36, 32)), [4, 4])
    weights = plan.merge.dense(36)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 4))
    assert plan.counts() == [4, 4] and plan.kept.tolist() == [[7, 10, 25, 28]] * 2
    quarters = torch.kron(torch.tensor([[0, 1], [2, 3]]), torch.ones(3, 3)).flatten()
    if name == "resampler":
        torch.testing.assert_close(weights, torch.full((2, 4, 36), 1 / 36))
    else:
        assert torch.equal(weights[0].argmax(0), quarters.long())


@pytest.mark.parametrize("name", COMPRESSORS)
def test_options_rebuild_it_and_a_copy_of_the_projector_is_its_own(name):
    compressor = catalog.build(name)
    again = catalog.build(name, **compressor.options())
    assert type(again) is type(compressor) and again.options() == compressor.options()
    projector = torch.nn.Linear(32, 20).half().requires_grad_(False)
    compressor.bind(SITE, 4, projector)
    copied = compressor.projector
    assert copied.weight.dtype == torch.float32 and copied.weight.requires_grad and not projector.weight.requires_grad
    assert torch.equal(copied.weight, projector.weight.float())
    with torch.device("meta"):
        away = torch.nn.Linear(32, 20)
    with pytest.raises(ValueError, match="train_projector must be False where the projector's weights are kept"):
        catalog.build(name).bind(SITE, 4, away)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_without_weights_it_says_so(name):
    with pytest.raises(RuntimeError, match=f"{name} has no weights yet"):
        catalog.build(name).plan(TokenView(torch.zeros(1, 36, 32)), [4])
    with pytest.raises(ValueError, match=f"keep must be 4, which this {name} is made for, got 9"):
        made(name).plan(TokenView(torch.zeros(1, 36, 32)), [9])


def test_compressors_and_selectors_share_no_name_and_the_catalog_knows_both():
    assert not set(COMPRESSORS) & set(selectors.available())
    assert catalog.available() == sorted([*COMPRESSORS, *selectors.available()])
    assert budgetprune.compressors() == COMPRESSORS and budgetprune.methods() == selectors.available()
    for name in catalog.available():
        assert catalog.find(name).name == name
        assert issubclass(catalog.find(name), Compressor) == (name in COMPRESSORS)
        assert issubclass(catalog.find(name), Selector)


@pytest.mark.parametrize("name", ["quecc", "fastv"])
def test_a_second_compressor_of_a_known_name_is_refused(name):
    with pytest.raises(ValueError, match=f"method '{name}' exists already"):
        type("Another", (Compressor,), {"name": name})
    assert compress.available() == COMPRESSORS


def test_an_unknown_name_lists_both_kinds():
    with pytest.raises(ValueError, match="unknown method 'queck'; known: adaptive.*; and those that compress: pooling"):
        catalog.find("queck")
    with pytest.raises(ValueError, match="unknown compressor 'fastv'; known: pooling_projector, quecc, resampler"):
        compress.find("fastv")
    with pytest.raises(TypeError, match="method must be a name of a method, got 3"):
        catalog.find(3)
