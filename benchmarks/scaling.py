"""README's words on model size against image tokens, made from the fit to the published points."""

from methods import row

from budgetprune.cost import fit_scaling, hold_out, plan_budget, published_points
from budgetprune.cost.scaling import PUBLISHED

FLOPS, TEXT, SIZES = 2e12, 50, (0.5, 1.8, 4, 7, 14)  # as in README's commands


def scaling_block() -> str:
    """What was fitted beside what its authors print, and what the commands above the block answer."""
    points = published_points()
    fit, held = fit_scaling(points), hold_out(points)
    known = PUBLISHED | {"ratio": PUBLISHED["alpha"] / PUBLISHED["beta"]}
    lines = [row(["", "fitted", "95 % interval", "published"]), "|---|--:|--:|--:|"]
    for name, letter, form in (("alpha", "alpha", ".4f"), ("beta", "beta", ".4f"),
                               ("ratio", "alpha / beta", ".2f"), ("d", "D", ".3f")):
        low, high = fit.intervals[name]
        published = f"{known[name]:.3g}" if name in known else ""
        lines.append(row([letter, f"{getattr(fit, name):{form}}", f"{low:{form}} to {high:{form}}", published]))
    free, listed = (plan_budget(fit, FLOPS, TEXT, sizes=sizes) for sizes in (None, SIZES))
    lines.append(f"\nAny size: {free.best.size:.1f} billion parameters and {free.best.tokens} image tokens, predicted "
                 f"error {free.best.error:.3f}. Of those five: {listed.best.size:g} billion and {listed.best.tokens} "
                 f"tokens, {listed.best.error:.3f}. {free.caution}")
    lines.append(f"\n{fit.n} points, SSE {fit.sse:.2e}. Fitted without its {held.size:g}B points, the law predicts "
                 f"them to {held.mean:.2%} of their error in the mean.")
    return "\n".join(lines)
