"""What a method asks of a training run, found out on a model's sizes alone: no weights, no image, no time.

The method itself is made on torch's meta device, and one forward and backward of it is counted there: products by
torch's flop counter, bytes by what autograd keeps. So a new trainable method needs no formula.
"""

from functools import partial
from inspect import signature

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..catalog import build, find
from ..checked import integer
from ..cost import VlmShape, parameters
from ..cost.training import Trainee

DTYPES = {2: torch.bfloat16, 4: torch.float32}
_empty = partial(torch.empty, device="meta")


def trainee(method: str, shape: VlmShape, *, keep: int | None = None, image_tokens: int | None = None,
            text_tokens: int = 200, bytes_per_value: int = 2, **options) -> Trainee:
    """A cost.training.Trainee of a trainable method in a model of this shape, for training_cost.

    Args:
        keep: K: the one of a compressor; the most that training draws with gate="features"; else not needed.
        image_tokens: N of a sample; None: one crop. text_tokens: of which a method that hears the question reads all.
        bytes_per_value: of the features that it gets. options: the method's own.

    ValueError: a method that is not trained, options that it does not have, a count that it cannot have, or a place
    in the model that is not there.
    """
    kind = find(method)
    if not kind.trainable:
        raise ValueError(f"method must be a trained one, {method} is not")
    if bytes_per_value not in DTYPES:
        raise ValueError(f"bytes_per_value must be {' or '.join(map(str, DTYPES))}, got {bytes_per_value!r}")
    tokens = shape.tokens_per_crop if image_tokens is None else integer("image_tokens", image_tokens, 1)
    before = shape.projector.selects_before
    if kind.fixed_count and not before:
        raise ValueError(f"{method} stands between tower and projector, where this model has no place for it")
    selector = build(method, **options)
    shrinks = kind.fixed_count or selector.acts_on == "features"
    if shrinks:
        if keep is None:
            raise ValueError(f"keep must be given for {method}, which trains on so many tokens")
        integer("keep", keep, 1, tokens)
    with torch.device("meta"):
        selector.bind_shape(shape, keep)
    in_tower = selector.budget_in_tower
    features = _empty(1, tokens, shape.projector.matrices[0][0] if before else shape.decoder.hidden,
                      dtype=DTYPES[bytes_per_value], requires_grad=in_tower)
    call = _compress if kind.fixed_count else _score
    flops, kept, learns = measured(selector, lambda: call(selector, shape, features, text_tokens))
    own = sum(parameter.numel() for parameter in selector.parameters())
    copied = kind.fixed_count and selector.options()["train_projector"]
    return Trainee(
        parameters=own + (parameters(shape)["projector"] if copied else 0), flops=flops, activations=kept,
        asked=selector.asking_flops(text_tokens, shape.decoder), tokens=keep if shrinks else None, in_tower=in_tower,
        own_projector=copied,
        through_features=in_tower or (before and (learns if kind.fixed_count else selector.acts_on != "attention")))


def _score(selector, shape, features, words):
    """The logits of one sample; the gates that follow are some values per patch."""
    asked = {}
    if selector.budget_in_tower:
        selector.token.embedding(_empty(1)).sum().backward()
        asked["state"] = _empty(1, shape.tower.hidden, dtype=features.dtype, requires_grad=True)
    if "text" in signature(selector.controller.logits).parameters:
        asked["text"] = _empty(1, words, shape.decoder.hidden, dtype=features.dtype)
    return selector.controller.train().logits(features, _empty(1), **asked)


def _compress(selector, shape, features, words):
    layers, heard = None, selector.heard(shape.tower.layers)
    if heard:
        layers = _empty(*features.shape[:2], len(heard) * shape.tower.hidden, dtype=features.dtype)
    text = _empty(1, shape.decoder.hidden, dtype=features.dtype) if "text" in selector.needs else None
    return selector.train()(features, layers, text)


def measured(module, call) -> tuple[int, int, bool]:
    """(operations of call() and its backward, bytes that autograd keeps between them, weights left out, whether
    anything in it learns).

    Tensors of the meta device have no address, so a storage is known by its object.
    """
    own, kept = {one.untyped_storage()._cdata for one in module.parameters()}, {}

    def pack(tensor: Tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes(), tensor  # held, or its place would be another's
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = call()
        if out.requires_grad:
            out.sum().backward()
    return counter.get_total_flops(), sum(size for size, _ in kept.values()), out.requires_grad
