"""FastV as its authors publish it for transformers: eager attention hands out its whole matrix, one row is ranked."""

import torch


class PublishedFastV:
    """Entered with a stock LLaVA: decoder layers from `layer` on see `keep` of the image tokens.

    Chen et al., ECCV 2024, the in-place code: output_attentions=True, so that every layer's matrix [B, H, L, L] is made
    and held; mean over heads and the last row of the layer before; the choice of the first sample serves the whole
    batch; one contiguous span of image tokens, no padding. The vision tower keeps its fast attention.
    """

    arguments = {"output_attentions": True}

    def __init__(self, model, first, tokens, keep, layer):
        self.model, self.decoder = model, model.model.language_model
        self.first, self.tokens, self.keep, self.layer = first, tokens, keep, layer
        self.weights = self.kept = self.embeddings = self.mask = None

    def __enter__(self):
        self.asked = self.decoder.config._attn_implementation
        self.model.set_attn_implementation({"text_config": "eager"})
        layers = self.decoder.layers
        self.handles = [layers[self.layer - 1].self_attn.register_forward_hook(self.remember)]
        self.handles += [block.register_forward_pre_hook(self.enter, with_kwargs=True) for block in layers[self.layer:]]
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        self.model.set_attn_implementation({"text_config": self.asked})

    def remember(self, module, args, output):
        self.weights = output[1]

    def rank(self):
        received = self.weights.mean(dim=1)[0, -1, self.first:self.first + self.tokens]
        image = received.topk(self.keep).indices + self.first
        columns = torch.arange(self.weights.shape[-1], device=image.device)
        return torch.cat([columns[:self.first], image, columns[self.first + self.tokens:]]).sort().values

    def enter(self, module, args, kwargs):
        hidden, kwargs = args[0], dict(kwargs)
        if hidden.shape[1] == 1:  # a new token reads all that these layers hold
            return args, {**kwargs, "attention_mask": None}
        if module.self_attn.layer_idx == self.layer:
            self.kept = kept = self.rank()
            self.weights, hidden = None, hidden[:, kept]
            self.embeddings = tuple(part[:, kept] for part in kwargs["position_embeddings"])
            self.mask = kwargs["attention_mask"][:, :, kept][..., kept]
        kwargs |= {"position_embeddings": self.embeddings, "attention_mask": self.mask, "position_ids": None}
        return (hidden, *args[1:]), kwargs
