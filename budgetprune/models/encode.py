"""The vision side: encode the images, let a method choose, hand what stays to the untouched model."""

import torch
from torch import Tensor

from . import attention, notice
from .encoding import Encoding
from .shrink import check_placeholders, shrink


@torch.compiler.disable  # as the model's own hook is: a projector that is compiled by itself begins behind it
def project(module, args):
    """Forward pre-hook of the projector."""
    call = attention.encoding.call
    return None if call is None or not call.before_projector else (call.features(args[0]), *args[1:])


def encode(model, inputs: dict, *, gates: bool, generating: bool = False) -> dict:
    """Replaces the images of `inputs` by their kept features, and shrinks the prompt to match.

    Returns forward arguments for the untouched model. gates: it trains; where the choice acts inside attention, the
    sequence keeps all its tokens and the arguments carry the gates. generating: generate() counts positions from 0 in
    every model.
    """
    pruner, family = model.budget_pruner, model.budget_pruner.family(model)
    ids = inputs.get("input_ids")
    media = [medium for medium, pixels in family.media.items() if inputs.get(pixels) is not None]
    if ids is None:
        raise ValueError(f"input_ids must be given with {family.media[media[0]]}: a pruned model finds its image "
                         "tokens there")
    if gates and family.prefix_lm and pruner.selector.acts_on == "attention":
        raise ValueError(f"{pruner.selector.name} cannot be trained in {type(model).__name__}: gates act inside causal "
                         "attention, and its prompt's tokens see each other in both directions; train it in another "
                         "model or with gate='noise', or call model.eval()")
    call = pruner.encoding(family)(model, family, inputs, gates=gates)
    outputs = call.finish({medium: call.run(medium) for medium in media})

    times = torch.ones_like(ids)
    start = 0
    for medium, lengths in call.lengths.items():
        is_media = ids == family.token_ids(model)[medium]
        check_placeholders(is_media, lengths, medium)
        if call.copies is not None:
            times = times.masked_scatter(is_media, call.copies[start:start + sum(lengths)].to(times))
        start += sum(lengths)
    used = {*family.media.values(), *family.encoder_arguments}
    rest = {name: value for name, value in inputs.items() if name not in used}
    if family.mrope:
        rest["position_ids"] = family.position_ids(model, inputs)
    if call.copies is not None:
        pad = model.config.get_text_config().pad_token_id or 0
        rest, index, valid = shrink(rest, times, positions=pruner.positions(family), pad_token_id=pad,
                                    first_position=0 if generating else family.first_position)
        pruner.record(call.plan, index, valid)
        if notice.wanted(pruner):
            mask = inputs.get("attention_mask")
            before = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
            images = [n for lengths in call.lengths.values() for n in lengths]
            notice.tell(pruner, model.config.get_text_config(), len(images), sum(images), int(call.copies.sum()),
                        before, valid.sum(1).tolist())
    else:
        pruner.record(call.plan)
    if call.gate is not None:
        rest["budgetprune_gate"] = sequence_gate(rest, family.token_ids(model), call)
    rest["mm_encoder_outputs"] = outputs
    return rest


def sequence_gate(inputs: dict, token_ids: dict, call: Encoding) -> tuple[Tensor, Tensor | None]:
    """(gate [B, L] over the whole sequence, 1 for all that is no patch; mask [B, L] bool or None)."""
    ids, mask, start = inputs["input_ids"], inputs.get("attention_mask"), 0
    full = torch.ones(ids.shape, dtype=call.gate[0].dtype, device=ids.device)
    for medium, lengths in call.lengths.items():
        own = call.gate[start:start + len(lengths)]
        full = full.masked_scatter(ids == token_ids[medium], torch.cat(own).to(full))
        start += len(lengths)
    return full, None if mask is None else mask.bool()


def one_tensor_each(family, kwargs):
    """Features as one tensor where the model wants that; a list of them, which beams need, may hold any sizes."""
    def as_one(name, output):
        if name not in family.one_tensor or isinstance(output.pooler_output, Tensor):
            return output
        return type(output)(pooler_output=torch.cat(list(output.pooler_output))[None])

    outputs = kwargs["mm_encoder_outputs"]
    return {**kwargs, "mm_encoder_outputs": {name: as_one(name, output) for name, output in outputs.items()}}
