"""What autograd keeps of a forward, counted as it is kept."""

import torch


def bytes_kept(model, inputs):
    """Of all tensors that autograd keeps of model(**inputs).loss and that are no weights."""
    own, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes(), tensor  # held, or its address would be another's
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    assert loss.requires_grad
    return sum(size for size, _ in seen.values())
