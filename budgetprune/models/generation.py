"""generate() of a pruned model: callers count in their own tokens, the model sees fewer."""

import functools
import inspect

import torch
from torch import Tensor

from . import decoder, turns
from .encode import encode


@functools.cache
def forward_names(cls):
    return tuple(inspect.signature(cls.forward).parameters)[1:]


def generate(self, inputs=None, *args, **kwargs):
    """generate() on the shrunk prompt; the caller's own prompt stands in front of what comes back."""
    stock = type(self).generate
    pruner, ids, cache = self.budget_pruner, kwargs.pop("input_ids", inputs), kwargs.get("past_key_values")
    family = pruner.family(self)
    if ids is None:
        return stock(self, ids, *args, **kwargs)
    shrunk, names = None, set(forward_names(type(self)))
    given = {name: value for name, value in kwargs.items() if name in names and value is not None}
    options = {key: given.pop(key) for key in ("past_key_values", "use_cache") if key in given}
    rest = {name: value for name, value in kwargs.items() if name not in names}
    if turns.held(cache):
        _refuse_speculation(_generation_config(self, args, kwargs), kwargs)
        images = {*family.media.values(), *family.encoder_arguments}
        later = {name: value for name, value in given.items() if name not in images}
        shrunk = turns.resume(cache, ids, later, family.is_placeholder(self, ids))
    else:
        turns.forget(cache)
    if shrunk is not None:
        return _answer(self, ids, shrunk, args, options, rest)
    if not any(given.get(pixels) is not None for pixels in family.media.values()):
        return stock(self, ids, *args, **kwargs)
    if pruner.llm is not None:
        _refuse_unsound(pruner.llm.selector.name, _generation_config(self, args, kwargs), kwargs)
    token = decoder.prompts.set(len(ids))
    try:
        if pruner.selector.place == "llm":
            shrunk = {"input_ids": ids, **given}
        else:
            with torch.no_grad():
                shrunk = encode(self, {"input_ids": ids, **given}, gates=False, generating=True)
        return _answer(self, ids, shrunk, args, options, rest)
    finally:
        decoder.prompts.reset(token)


def _answer(model, ids, shrunk, args, options, kwargs):
    """The model's own generate() on a prompt that is `shrunk` from `ids`, whose lengths count for the caller."""
    prompt = shrunk["input_ids"]
    less = ids.shape[1] - prompt.shape[1]
    config = _generation_config(model, args, kwargs)
    for name, newer in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        length = kwargs.get(name, getattr(config, name, None))
        if less and length is not None and kwargs.get(newer) is None and getattr(config, newer, None) is None:
            kwargs[name] = length - less
    inputs = {name: value for name, value in shrunk.items() if name != "input_ids"}
    result = type(model).generate(model, prompt, *args, **inputs, **options, **kwargs)
    sequences = result if isinstance(result, Tensor) else result.sequences
    answers = sequences[:, prompt.shape[1]:]
    turns.remember(getattr(result, "past_key_values", options.get("past_key_values")), ids, shrunk)
    sequences = torch.cat([ids.repeat_interleave(len(answers) // len(ids), dim=0), answers], dim=1)
    if isinstance(result, Tensor):
        return sequences
    result.sequences = sequences
    return result


def _generation_config(model, args, kwargs):
    return kwargs.get("generation_config") or (args[0] if args else None) or model.generation_config


def _refuse_unsound(name, config, kwargs):
    """Ways to generate in which the last token of the first forward is not the prompt's last token."""
    for option in ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model"):
        if kwargs.get(option) is not None or getattr(config, option, None) is not None:
            raise ValueError(f"{option} cannot be used with {name}: it ranks image tokens by the end of the prompt, "
                             "which must be in the first forward as a whole, with nothing behind it; leave the option "
                             "out, or use a method that prunes before the language model")


def _refuse_speculation(config, kwargs):
    """transformers begins it as if the cache were empty, and says something else than greedy decoding."""
    for option in ("prompt_lookup_num_tokens", "assistant_model"):
        if kwargs.get(option) is not None or getattr(config, option, None) is not None:
            raise ValueError(f"{option} cannot be used over a cache that holds tokens: leave it out, or start anew, "
                             "with the whole conversation and without past_key_values")
