"""Tiny random models and batches, offline."""

import torch

IMAGE_TOKEN, PAD, TOKENS = 100, 0, 16


def make_llava(attention="sdpa", seed=0, strategy="default", kv_heads=2):
    """A random LLaVA with a CLIP tower of 16 patches; weights large enough that argmax is not degenerate."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                              image_size=28, patch_size=7, projection_dim=16)
    text = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                       num_attention_heads=4, num_key_value_heads=kv_heads, max_position_embeddings=256,
                       bos_token_id=1, eos_token_id=None, pad_token_id=PAD)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN,
                         vision_feature_layer=-2, vision_feature_select_strategy=strategy)
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_batch(text=(5, 3), tokens=TOKENS, seed=1, padding="left", labels=False):
    """Rows of [padding] bos a b IMAGE*tokens and `text[b]` words; one image a row."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for words in text:
        before = torch.randint(2, 90, (2,), generator=generator).tolist()
        after = torch.randint(2, 90, (words,), generator=generator).tolist()
        rows.append([1, *before, *[IMAGE_TOKEN] * tokens, *after])
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        blank = longest - len(row)
        ids.append([PAD] * blank + row if padding == "left" else row + [PAD] * blank)
        mask.append([0] * blank + [1] * len(row) if padding == "left" else [1] * len(row) + [0] * blank)
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask),
             "pixel_values": torch.randn(len(rows), 3, 28, 28, generator=generator)}
    if labels:
        hidden = (batch["input_ids"] == IMAGE_TOKEN) | (batch["attention_mask"] == 0)
        batch["labels"] = batch["input_ids"].masked_fill(hidden, -100)
    return batch


def answered(batch, words=2):
    """The batch with labels at the last `words` words of each row."""
    ids, there = batch["input_ids"], batch["attention_mask"].bool()
    last = torch.where(there, torch.arange(ids.shape[1]), -1).amax(1, keepdim=True)
    column = torch.arange(ids.shape[1])
    return {**batch, "labels": ids.masked_fill(~((column > last - words) & (column <= last)), -100)}


def state_of(model):
    """Everything that a pruner could leave behind, of every module."""
    return [(name, sorted(k for k in module.__dict__ if k != "training"), id(getattr(module, "config", None)),
             len(module._forward_pre_hooks), len(module._forward_hooks)) for name, module in model.named_modules()]
