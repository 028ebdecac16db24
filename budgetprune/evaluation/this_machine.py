"""The rates of the machine at hand, measured, so that a roofline can be asked of it as of a data sheet."""

from time import perf_counter

import torch

from ..cost import Device, device


def device_of(name: str) -> Device:
    """The device called `name`, or `this`: see measured_device."""
    if name == "this":
        return measured_device()
    try:
        return device(name)
    except ValueError as error:
        raise ValueError(str(error).replace("device must be one of", "hardware must be this or one of")) from None


def measured_device(*, size: int = 1024, megabytes: int = 64, seconds: float = 0.5) -> Device:
    """What this machine's CPU reaches with as many threads as torch uses now, the best of `seconds` of tries each:
    float32 products of `size` x `size` matrices, and copies of `megabytes`, of which both sides count as moved."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    values = torch.rand(megabytes * 2**20 // 4)
    other = torch.empty_like(values)
    flops = 2 * size**3 / _best(lambda: torch.mm(a, b), seconds)
    moved = 2 * values.nbytes / _best(lambda: other.copy_(values), seconds)
    return Device("this CPU", "float32", flops, moved, 0, f"measured with torch {torch.__version__}, "
                  f"{torch.get_num_threads()} threads")


def _best(call, seconds):
    call()
    best, end = float("inf"), perf_counter() + seconds
    while True:
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
        if perf_counter() >= end:
            return best
