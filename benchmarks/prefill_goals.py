"""Goals for the end-to-end figures of bench_generate.py. Standard library only, as table.py needs it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrefillGoal:
    """A bound on a figure of bench_generate.py; of all methods it is meant for, the worst counts.

    figure: "ideal_share" (at least `bound`), "overhead", the time over the ideal one, or "selection_share" (at most).
    place: methods before the decoder ("vision") or inside it ("llm"). provider: one method only.
    """

    model: str
    B: int
    keep: int
    figure: str
    bound: float
    place: str | None = None
    provider: str | None = None
    dtype: str = "bfloat16"
    device: str = "cuda"
    op: str = "generate"
    case: str = "prefill"

    def __post_init__(self):
        if self.figure not in ("ideal_share", "overhead", "selection_share"):
            raise ValueError(f"figure must be ideal_share, overhead or selection_share, got {self.figure!r}")

    @property
    def shape(self):
        return f"{self.model} B={self.B} K={self.keep}"

    def text(self):
        whose = self.provider or {"vision": "every method before the decoder", "llm": "every method inside the decoder",
                                  None: "every method"}[self.place]
        what = {"ideal_share": "at least {} of the ideal speed-up", "overhead": "at most {} over the ideal time",
                "selection_share": "selection at most {} of prefill"}[self.figure]
        return f"{whose}: {what.format(f'{self.bound:.0%}')}"

    def measured(self, entries):
        """(figure as text, whether it is reached), or None where nothing was measured."""
        found = {}
        for entry in entries:
            info = entry["extra_info"]
            if info["op"] != self.op or info["shape"] != self.shape or info["dtype"] != self.dtype:
                continue
            ours = info["place"] and info["layers"] is None and info["on"] == self.device
            if ours and self.place in (None, info["place"]) and self.provider in (None, info["provider"]):
                figure = info["selection_share" if self.figure == "selection_share" else "ideal_share"]
                if figure is not None:
                    found[info["provider"]] = 1 / figure - 1 if self.figure == "overhead" else figure
        if not found:
            return None
        worst = (min if self.figure == "ideal_share" else max)(found, key=found.get)
        met = found[worst] >= self.bound if self.figure == "ideal_share" else found[worst] <= self.bound
        return f"{found[worst]:.1%}" + ("" if self.provider else f" ({worst})"), met
