"""What a token budget costs: FLOPs, bytes and a roofline, from plain numbers and the standard library only."""

from .flops import PrefillFlops, decode_flops_per_token, decoder_flops, prefill_flops, projector_flops, tower_flops
from .hardware import DEVICES, Device, device, roofline_ms
from .memory import kv_bytes, parameters, weight_bytes
from .shapes import KNOWN, DecoderShape, TowerShape, VlmShape, known
from .table import CostRow, table

__all__ = [
    "DEVICES", "KNOWN", "CostRow", "DecoderShape", "Device", "PrefillFlops", "TowerShape", "VlmShape",
    "decode_flops_per_token", "decoder_flops", "device", "known", "kv_bytes", "parameters", "prefill_flops",
    "projector_flops", "roofline_ms", "table", "tower_flops", "weight_bytes",
]
