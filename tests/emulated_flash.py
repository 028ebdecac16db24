"""flash_attn's two functions in plain torch, so that the way through transformers to them can be run on a CPU."""

from contextlib import contextmanager

import torch
import transformers.modeling_flash_attention_utils as flash


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """q [B, Q, H, D], k and v [B, N, Hkv, D]; causal: the last query sees all keys."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), *(x.repeat_interleave(groups, 2).transpose(1, 2) for x in (k, v))
    queries, keys = q.shape[2], k.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if causal else None
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=softmax_scale)
    return out.transpose(1, 2)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                           softmax_scale=None, causal=False):
    """Sequences one behind the other, without padding."""
    parts = zip(q.split(cu_seqlens_q.diff().tolist()), k.split(cu_seqlens_k.diff().tolist()),
                v.split(cu_seqlens_k.diff().tolist()))
    return torch.cat([flash_attn_func(*(x[None] for x in part), softmax_scale=softmax_scale, causal=causal)[0]
                      for part in parts])


@contextmanager
def emulated(model):
    """`model` with all its attention asked for as flash_attention_2, in float32."""
    before = [(config, config._attn_implementation) for config in configs_of(model)]
    names = ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn",
             "_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn")
    saved = {name: getattr(flash, name) for name in names}
    process = flash._lazy_define_process_function(flash_attn_varlen_func)
    values = ("flash_attention_2", flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input,
              process, dict)
    try:
        for name, value in zip(names, values):
            setattr(flash, name, value)
        for config, _ in before:
            config._attn_implementation = "flash_attention_2"
        yield model
    finally:
        for name, value in saved.items():
            setattr(flash, name, value)
        for config, value in before:
            config._attn_implementation = value




def configs_of(model):
    """Every config that a module of the model reads its attention from, once."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())
