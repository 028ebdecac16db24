"""A decoder whose later layers are on a second device, as device_map="auto" puts them where one is too small.

There are no two GPUs here: tensors carry the name of a device with them, and an operation on both is an error, as it is
on real ones. What device a tensor is on, moves between them and tensors made on one go by that name.
"""

import pytest
import torch
from families import make_inputs, make_model
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

import budgetprune
from budgetprune.models.base import family_of

KEEP = {"fastv": [5, 3], "pyramiddrop": [3, 2], "sparsevlm": [4, 3], "dart": [5, 3], "uniform": [1, 3, 2],
        "prumerge": [1, 3, 2], "cdpruner": [1, 3, 2], "visionzip+fastv": ([4, 5, 3], [2, 2])}


class Devices(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = WeakTensorKeyDictionary()

    def put(self, x, name):
        if isinstance(x, torch.Tensor):
            self.names[x] = name
        return x

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return self.names.get(args[0], torch.device("cpu"))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        given = [x for x in given if x.dim()] or given  # a number goes with tensors on any device
        names = {self.names.get(x, torch.device("cpu")) for x in given}
        if func == torch.Tensor.to:
            names, args, kwargs = self.moved(args[0], *args[1:], **kwargs)
        elif isinstance(kwargs.get("device"), torch.device):
            names = {kwargs.pop("device")}
        elif len(names) > 1 and func not in (torch.Tensor.__setitem__, torch.Tensor.copy_):
            raise RuntimeError(f"expected all tensors to be on the same device, {func} got {names}")
        out = func(*args, **kwargs)
        return tree_map(lambda x: self.put(x, *names), out) if names - {torch.device("cpu")} else out

    def moved(self, x, *where, **options):
        """({the new device}, the arguments of Tensor.to without it)."""
        name, rest = self.names.get(x, torch.device("cpu")), []
        for value in (*where, *options.values()):
            if isinstance(value, torch.Tensor):
                name, value = self.names.get(value, torch.device("cpu")), value.dtype
            if isinstance(value, torch.device):
                name = value
            elif isinstance(value, torch.dtype):
                rest.append(value)
        return {name}, (x if name == self.names.get(x, torch.device("cpu")) else x.clone(), *(rest or [x.dtype])), {}


def spread(model, devices, first=2):
    """Decoder layers from `first` on are on another device, and move what they are given, as accelerate's hooks do."""
    here, there = torch.device("cuda:0"), torch.device("cuda:1")
    decoder = family_of(model).decoder(model)

    def dispatched(module, name):
        stock = module.forward

        def forward(*args, **kwargs):
            args, kwargs = tree_map(lambda x: x.to(name) if isinstance(x, torch.Tensor) else x, (args, kwargs))
            return stock(*args, **kwargs)

        module.forward = forward

    for x in (*model.parameters(), *model.buffers()):
        devices.put(x, here)
    for number, block in enumerate(decoder.layers):
        for x in (*block.parameters(), *block.buffers()):
            devices.put(x, there if number >= first else here)
        dispatched(block, there if number >= first else here)
    dispatched(decoder.norm, here)


@torch.no_grad()
@pytest.mark.parametrize("method", KEEP)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "paligemma"])
def test_a_prompt_that_passes_two_devices_mixes_nothing(name, method):
    model, devices = make_model(name), Devices()
    inputs, _ = make_inputs(name, model, images=(2, 1))
    with budgetprune.prune(model, method, keep=KEEP[method]):
        expected = model(**inputs).logits
    spread(model, devices)
    for value in inputs.values():
        devices.put(value, torch.device("cuda:0"))
    with budgetprune.prune(model, method, keep=KEEP[method]), devices:
        logits = model(**inputs).logits
        assert logits.device == torch.device("cuda:0")
    assert torch.equal(logits, expected)


def test_the_emulated_devices_refuse_to_be_mixed():
    devices = Devices()
    one, other = devices.put(torch.ones(2), torch.device("cuda:0")), devices.put(torch.ones(2), torch.device("cuda:1"))
    with devices:
        assert (one + one).device == one.to(torch.float64).device == torch.zeros(3, device=one.device).device
        assert (other.to(one.device) + one).device == one.device and one.to(other).device == other.device
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            one + other
