"""What a token budget costs: FLOPs, bytes and a roofline, from plain numbers and the standard library only; and what
model size to spend it on, by a law that numpy and scipy fit when they are asked.
"""

from .budget_plan import BudgetPlan, Choice, plan_budget
from .families import KNOWN, shape_of
from .flops import (
    PrefillFlops,
    decode_flops_per_token,
    decode_operators,
    decoder_flops,
    flops_of,
    prefill_flops,
    prefill_operators,
    projector_flops,
    tower_flops,
)
from .hardware import DEVICES, Device, device, operators_ms, reported_device, roofline_ms
from .joint import JointChoice, joint_budget, joint_flops, joint_frontier, joint_roofline_ms
from .memory import kv_bytes, parameters, weight_bytes
from .scaling import (
    HoldOut,
    ScalingFit,
    ScalingPoint,
    best_tokens,
    fit_scaling,
    hold_out,
    published_notes,
    published_points,
    scaling_flops,
)
from .shapes import DecoderShape, ProjectorShape, TowerShape, VlmShape, known
from .table import CostRow, table
from .tiling import Seen, Tiling, see

__all__ = [
    "DEVICES", "KNOWN", "BudgetPlan", "Choice", "CostRow", "DecoderShape", "Device", "HoldOut", "JointChoice",
    "PrefillFlops", "ProjectorShape", "ScalingFit", "ScalingPoint", "Seen", "Tiling", "TowerShape", "VlmShape",
    "best_tokens", "decode_flops_per_token", "decode_operators", "decoder_flops", "device", "fit_scaling", "flops_of",
    "hold_out", "joint_budget", "joint_flops", "joint_frontier", "joint_roofline_ms", "known", "kv_bytes",
    "operators_ms", "parameters", "plan_budget", "prefill_flops", "prefill_operators", "projector_flops",
    "published_notes", "published_points", "reported_device", "roofline_ms", "scaling_flops", "see", "shape_of",
    "table", "tower_flops", "weight_bytes",
]
