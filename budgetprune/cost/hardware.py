"""Peak rates of accelerators, from their vendors' data sheets, and the roofline they give.

Rates are dense (no structured sparsity) matrix rates with float32 accumulation: what a Transformer in that dtype can
use at most. GeForce cards run the same matrices twice as fast with float16 accumulation, which frameworks do not use.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator at its vendor's peak, or a machine at the rates that were measured on it."""

    name: str
    dtype: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    source: str

    @property
    def bytes_per_value(self):
        return 4 if self.dtype == "float32" else 2


def _row(key, name, dtype, teraflops, gigabytes_per_s, gigabytes, source):
    return key, Device(name, dtype, teraflops * 1e12, gigabytes_per_s * 1e9, gigabytes * 10**9, source)


DEVICES = dict([
    _row("v100-pcie", "V100 PCIe 32 GB", "float16", 112, 900, 32, "NVIDIA V100 data sheet, 2020"),
    _row("v100-sxm", "V100 SXM2 32 GB", "float16", 125, 900, 32, "NVIDIA V100 data sheet, 2020"),
    _row("t4", "T4 16 GB", "float16", 65, 320, 16, "NVIDIA T4 data sheet, 2019"),
    _row("a10", "A10 24 GB", "bfloat16", 125, 600, 24, "NVIDIA A10 data sheet, 2021"),
    _row("a100-40g", "A100 SXM 40 GB", "bfloat16", 312, 1555, 40, "NVIDIA A100 data sheet, 2021"),
    _row("a100-80g", "A100 SXM 80 GB", "bfloat16", 312, 2039, 80, "NVIDIA A100 data sheet, 2021"),
    _row("l4", "L4 24 GB", "bfloat16", 121, 300, 24, "NVIDIA L4 data sheet, 2023 (half of the sparse 242)"),
    _row("l40s", "L40S 48 GB", "bfloat16", 362.05, 864, 48, "NVIDIA L40S data sheet, 2023"),
    _row("rtx3090", "GeForce RTX 3090", "bfloat16", 71, 936, 24, "NVIDIA GA102 white paper, 2020"),
    _row("rtx4090", "GeForce RTX 4090", "bfloat16", 165.2, 1008, 24, "NVIDIA Ada GPU architecture white paper, 2022"),
    _row("h100-pcie", "H100 PCIe 80 GB", "bfloat16", 756, 2000, 80, "NVIDIA H100 data sheet, 2022"),
    _row("h100-sxm", "H100 SXM 80 GB", "bfloat16", 989.4, 3350, 80, "NVIDIA H100 architecture white paper, 2023"),
    _row("h200-sxm", "H200 SXM 141 GB", "bfloat16", 989.4, 4800, 141, "NVIDIA H200 data sheet, 2023"),
])


# What people call them, for the form that most of them have.
ALIASES = {"v100": "v100-pcie", "a100": "a100-80g", "h100": "h100-sxm", "h200": "h200-sxm", "l40": "l40s"}


# What drivers call the cards of DEVICES, to the letter: other forms of a card have other rates.
REPORTED = {"Tesla V100-PCIE-32GB": "v100-pcie", "Tesla V100-SXM2-32GB": "v100-sxm", "Tesla T4": "t4",
            "NVIDIA A10": "a10", "NVIDIA A100-SXM4-40GB": "a100-40g", "NVIDIA A100-SXM4-80GB": "a100-80g",
            "NVIDIA L4": "l4", "NVIDIA L40S": "l40s", "NVIDIA GeForce RTX 3090": "rtx3090",
            "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA H100 PCIe": "h100-pcie",
            "NVIDIA H100 80GB HBM3": "h100-sxm", "NVIDIA H200": "h200-sxm"}


def reported_device(name: str) -> Device | None:
    """The device that torch.cuda.get_device_name calls `name`, as records do; None: it is not among DEVICES."""
    return DEVICES.get(REPORTED.get(name))


def device(name: str) -> Device:
    """The device called `name`; ValueError lists the names there are."""
    found = DEVICES.get(ALIASES.get(name, name))
    if found is None:
        raise ValueError(f"device must be one of {', '.join([*DEVICES, *ALIASES])}, got {name!r}")
    return found


def roofline_ms(flops, nbytes, on: Device | str) -> float:
    """The least milliseconds for `flops` operations and `nbytes` moved, were both to overlap perfectly.

    A bound, not a forecast: real prefills reach perhaps half of it, and launches and selection come on top.
    Source: Williams, Waterman, Patterson, CACM 2009.
    """
    on = device(on) if isinstance(on, str) else on
    for name, value in (("flops", flops), ("nbytes", nbytes)):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return 1e3 * max(flops / on.flops_per_s, nbytes / on.bytes_per_s)


def operators_ms(operators, on: Device | str, *, bytes_per_value=2) -> float:
    """Milliseconds of operators one after the other, each at its own bound: the slower of its operations at the peak
    rate and its bytes at the memory's bandwidth.

    Still no forecast: no launch, no rest of a tile, no peak that is not reached. But what is bound by memory and what
    by operations is told apart, which the sums over a whole prefill hide.
    """
    return sum(roofline_ms(one.flops, (one.weights + one.moved) * bytes_per_value, on) for one in operators)
