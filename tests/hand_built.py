"""What a pruned model must say, from the stock model's own embeddings, one sample at a time and without padding."""

import torch
from families import IMAGE, VIDEO


def stock_call(model, inputs):
    """What the stock model hands to its decoder: inputs_embeds [B, L, C], position_ids, deepstack features."""
    seen = {}

    def listen(module, args, kwargs):
        seen.update(kwargs)

    handle = model.model.language_model.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return seen


def patch_columns(model, inputs, embeds, lengths, videos):
    """Per image, then per video, (row, columns of its patches): line ends are told by their embedding."""
    newline = getattr(model.model, "image_newline", None)
    found = []
    for token, each in ((IMAGE, lengths), (VIDEO, videos)):
        for place in (inputs["input_ids"] == token).nonzero().split(each) if each else ():
            row, columns = int(place[0, 0]), place[:, 1]
            if newline is not None:
                columns = columns[~(embeds[row, columns] == newline).all(-1)]
            found.append((row, columns))
    return found


def outputs_of(plan, image, x, original):
    """(features of the output tokens of one image with features x [N, C], the place of each)."""
    n, count = len(x), plan.counts()[image]
    if plan.merge is None:
        kept = plan.kept[image][plan.kept[image] >= 0].long()
        return x[kept], kept.tolist()
    widest = max(n, int(plan.merge.index.max()) + 1)  # other images of the batch may be larger
    tokens = plan.merge.dense(widest)[image, :count, :n] @ x
    offsets, index = plan.merge.offsets[image].tolist(), plan.merge.index[image].tolist()
    first = [next((j for j in index[offsets[m]:offsets[m + 1]] if j >= 0), n) for m in range(count)]
    if original:
        order = sorted(range(count), key=lambda m: first[m])
        return tokens[order], [first[m] for m in order]
    return tokens, list(range(count))


def hand_built_logits(name, model, inputs, lengths, plan, positions, videos=()):
    """[L', V] of every sample. positions: "compact" or "original"."""
    seen = stock_call(model, inputs)
    embeds, where = seen["inputs_embeds"], seen.get("position_ids")
    mrope = where is not None and where.dim() == 3
    original = mrope or positions == "original"
    images = patch_columns(model, inputs, embeds, lengths, videos)
    is_media = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO]))
    deep = seen.get("deepstack_visual_embeds")
    logits = []
    for row, exists in enumerate(inputs["attention_mask"].bool()):
        is_text = exists & ~is_media[row]
        parts = [(int(c), embeds[row, c], None) for c in is_text.nonzero().flatten()]
        for image, (owner, columns) in enumerate(images):
            if owner != row:
                continue
            x = embeds[row, columns]
            tokens, places = outputs_of(plan, image, x, original)
            layers = None
            if deep is not None:
                flat = is_media.flatten().nonzero().flatten().tolist()
                rows = [flat.index(row * embeds.shape[1] + int(c)) for c in columns]
                layers = [outputs_of(plan, image, level[rows], original)[0] for level in deep]
            for i, place in enumerate(places):
                parts.append((int(columns[place]), tokens[i], layers and [level[i] for level in layers]))
        parts.sort(key=lambda part: part[0])
        columns = torch.tensor([part[0] for part in parts])
        x = torch.stack([part[1] for part in parts])[None]
        first = 1 if name == "paligemma" else 0
        steps = torch.arange(len(parts))[None] + first
        if mrope:
            ids = torch.cat([steps[None], where[-3:, row, columns][:, None]])
        elif original:
            ids = (exists.long().cumsum(0)[columns] - 1)[None] + first
        else:
            ids = steps
        mask = torch.ones(1, len(parts), dtype=torch.long)
        if name == "paligemma":  # the whole prompt sees itself
            mask = torch.zeros(1, 1, len(parts), len(parts))
        extra = {}
        if deep is not None:
            visual = torch.tensor([[part[2] is not None for part in parts]])
            extra = {"visual_pos_masks": visual, "deepstack_visual_embeds": [
                torch.stack([part[2][i] for part in parts if part[2] is not None]) for i in range(len(deep))]}
        hidden = model.model.language_model(inputs_embeds=x, position_ids=ids, attention_mask=mask, use_cache=False,
                                            **extra).last_hidden_state
        logits.append(model.lm_head(hidden)[0])
    return logits
