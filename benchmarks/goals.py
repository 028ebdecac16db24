"""What was set out to be reached on one H100, before anything was measured; report_goals says how far it went."""

from dataclasses import dataclass

from prefill_goals import PrefillGoal
from report import seconds_of


@dataclass(frozen=True)
class Goal:
    """At most `us` microseconds, or at least `times` faster than `against`, or `share` of the measured ceiling."""

    op: str
    case: str
    shape: str
    dtype: str
    us: float | None = None
    times: float | None = None
    against: str = ""
    share: float | None = None
    provider: str = "budgetprune"
    device: str = "cuda"

    def text(self):
        if self.us:
            return f"{self.us:g} us"
        return f"{self.times:g}x {self.against}" if self.times else f"{self.share:.0%} of the ceiling"


RACE = {"provider": "budgetprune race"}
GOALS = [
    Goal("gumbel_topk", "forward", "llava15", "float32", us=5, **RACE),
    Goal("gumbel_topk", "forward", "llava15", "float32", times=10, against="eager composition", **RACE),
    Goal("gumbel_topk", "forward", "llava15", "float32", times=5, against="torch.compile", **RACE),
    Goal("gumbel_topk", "forward", "llava15", "float32", times=1, against="flashinfer top_k alone", **RACE),
    Goal("gumbel_topk", "backward", "llava15", "float32", us=3, **RACE),
    Goal("gumbel_topk", "backward", "llava15", "float32", times=8, against="eager composition", **RACE),
    Goal("gumbel_topk", "forward", "video_b64", "float32", us=15, **RACE),
    Goal("gather_tokens", "padded", "llava15_b64", "bfloat16", share=0.85),
    Goal("gather_tokens", "padded", "clip_b8", "bfloat16", us=3),
    Goal("gather_tokens", "padded", "clip_b8", "bfloat16", times=3, against="eager composition"),
    Goal("gather_tokens", "backward", "llava15_b64", "bfloat16", share=0.85),
    Goal("gather_tokens", "backward", "llava15_b64", "bfloat16", times=1.25, against="zeros and scatter"),
    Goal("attention_received", "last", "llava15_b8", "bfloat16", us=18),
    Goal("attention_received", "last", "llava_next_b1", "bfloat16", us=10),
    Goal("attention_received", "last", "llava15_b8", "bfloat16", times=30, against="eager composition"),
    Goal("attention_received", "last", "llava15_b8", "bfloat16", times=3, against="einsum of one row"),
    Goal("attention_received", "all", "qwen25vl_b1", "bfloat16", times=0.6, against="sdpa"),
    Goal("greedy_select", "max_min", "llava15", "float32", us=100),
    Goal("greedy_select", "max_min", "llava15", "float32", times=20, against="published loop"),
    PrefillGoal("llava-1.5-7b", 8, 64, "ideal_share", 0.85, place="vision"),
    PrefillGoal("llava-1.5-7b", 8, 64, "overhead", 0.03, provider="fastv"),
    PrefillGoal("llava-1.5-7b", 8, 64, "selection_share", 0.01),
    Goal("gumbel_topk", "forward", "llava15", "float32", times=6, against="eager composition", device="cpu", **RACE),
    Goal("gumbel_topk", "backward", "llava15", "float32", times=4, against="eager composition", device="cpu", **RACE),
    Goal("gumbel_topk", "forward", "llava15_b1", "float32", us=15, device="cpu", **RACE),
]


def measured(goal, entries):
    """(figure as text, whether it is reached), or None where nothing was measured."""
    if isinstance(goal, PrefillGoal):
        return goal.measured(entries)
    found = {entry["extra_info"]["provider"]: entry for entry in entries
             if all(entry["extra_info"][name] == getattr(goal, name) for name in ("op", "case", "shape", "dtype"))
             and ("hot_us" in entry["extra_info"]) == (goal.device == "cuda")}
    ours, theirs = found.get(goal.provider), found.get(goal.against)
    if ours is None or (goal.against and theirs is None):
        return None
    seconds = seconds_of(ours)
    if goal.us:
        return f"{seconds * 1e6:.1f} us", seconds * 1e6 <= goal.us
    if goal.times:
        ratio = seconds_of(theirs) / seconds
        return f"{ratio:.2f}x", ratio >= goal.times
    info = ours["extra_info"]
    share = info["GB/s"] / info["ceilings"]["copy GB/s"]
    return f"{share:.0%}", share >= goal.share


def goals_table(entries, device):
    """One row per goal of a device: cuda or cpu."""
    lines = ["| op | case | shape | goal | measured | |", "|---|---|---|---|--:|---|"]
    for goal in GOALS:
        if goal.device != device:
            continue
        figure, met = measured(goal, entries) or ("", None)
        verdict = "not measured" if met is None else "met" if met else "not met"
        lines.append(f"| {goal.op} | {goal.case} | {goal.shape} {goal.dtype} | {goal.text()} | {figure} | {verdict} |")
    return "\n".join(lines)
