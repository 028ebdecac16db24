"""How large a model and how many image tokens a budget of FLOPs is best spent on, by a fitted scaling law."""

import math
from dataclasses import dataclass

from ..checked import integer
from .scaling import ScalingFit, best_tokens, law, positive, scaling_flops


@dataclass(frozen=True)
class Choice:
    """One way to spend the budget.

    size: billions of parameters; tokens: image tokens; error: predicted, a fraction; interval: its central 95 % over
    the bootstrap fits, None without them; flops: what it costs, as scaling_flops counts.
    """

    size: float
    tokens: int
    error: float
    interval: tuple[float, float] | None
    flops: float


@dataclass(frozen=True)
class BudgetPlan:
    """The best way to spend `flops`, and the others that were weighed.

    flops, text_tokens, most: as plan_budget was asked. best: of `choices`, which hold one Choice per size asked for
        that the budget pays for, in ascending order, else the best alone.
    too_large: sizes asked for of which the budget does not pay for one image token.
    tokens_interval: image tokens that the central 95 % of the bootstrap fits would take, where the size is free.
    agreement: the share of the bootstrap fits that prefer the same size, where sizes were asked for.
    beyond: what of the best lies outside the fitted points, in words; nothing where all lies within.
    """

    flops: float
    text_tokens: int
    most: int
    best: Choice
    choices: tuple[Choice, ...]
    too_large: tuple[float, ...]
    tokens_interval: tuple[float, float] | None
    agreement: float | None
    beyond: tuple[str, ...]

    @property
    def caution(self) -> str:
        """How far the answer can be trusted, in one sentence."""
        where = (f"Extrapolated: {' and '.join(self.beyond)}" if self.beyond
                 else "Size and count lie within those of the points")
        if self.tokens_interval is not None:
            low, high = (f"{count:.0f}" for count in self.tokens_interval)
            spread = f"bootstrap fits take {low if low == high else f'{low} to {high}'} image tokens"
            if self.best.tokens == self.most:
                where += ", and more tokens than the most allowed would be better still"
        elif self.agreement is not None:
            spread = f"{self.agreement:.0%} of the bootstrap fits take the same model"
        else:
            return f"{where}; the points are too few for intervals, so nothing says how uncertain this is."
        return f"{where}; {spread}, which covers noise around the law, not whether the law holds there."


def plan_budget(fit: ScalingFit, flops, text_tokens, *, sizes=None, most=None) -> BudgetPlan:
    """The model size and the number of image tokens with the least predicted error for at most `flops`.

    flops: of one prefill, counted as 2 N (Q + V). text_tokens: Q; 0 where their cache is reused.
    sizes: billions of the only models there are, each weighed at its best count; None: any size can be had.
    most: most image tokens; those of the fitted points where None. Counts are whole.
    ValueError: flops or a size not above 0; most below 1; no size leaves one image token; or a fit whose alpha is
    not above 0, by which a larger model is no better. Departures: the paper compares sizes along curves of equal
    error and gives no routine; this is its law, minimised.
    """
    flops, text = positive("flops", flops), integer("text_tokens", text_tokens)
    most = math.floor(fit.tokens[1]) if most is None else most
    most = integer("most", most, 1)
    if fit.alpha <= 0:
        raise ValueError(f"fit must have an alpha above 0, got {fit.alpha:.4f}: larger models are no better in these "
                         "points, so they say nothing about size")
    if sizes is not None:
        return _of_sizes(fit, flops, text, sorted({positive("sizes", size) for size in sizes}), most)
    # Counts are whole, and the error has one minimum over them: it lies beside that of the formula.
    at = best_tokens(fit.alpha, fit.beta, text, most)
    tokens = min((math.floor(at), math.ceil(at)), key=lambda v: fit.error(size_for(flops, v, text), v))
    best = _choice(fit, size_for(flops, tokens, text), tokens, text)
    spread = fit.interval(lambda a, alpha, beta, d: best_tokens(alpha, beta, text, most) if alpha > 0 else 1.0)
    return BudgetPlan(flops, text, most, best, (best,), (), spread, None, _beyond(fit, best))


def size_for(flops, tokens, text_tokens) -> float:
    """Billions of parameters that `flops` pay for at these counts: flops / 2e9 (Q + V). ValueError: both are 0."""
    return flops / (2e9 * positive("tokens + text_tokens", tokens + text_tokens))


def _of_sizes(fit, flops, text, sizes, most):
    if not sizes:
        raise ValueError("sizes must name at least one model, got none")
    afford = {size: min(most, math.floor(flops / (2e9 * size) - text + 1e-9)) for size in sizes}
    paid = {size: tokens if fit.beta > 0 else 1 for size, tokens in afford.items() if tokens >= 1}
    if not paid:
        raise ValueError(f"flops must pay for an image token beside {text} text tokens, {sizes[0]:g} billions need "
                         f"{scaling_flops(sizes[0], 1, text):.3g}, got {flops:.3g}")
    choices = tuple(_choice(fit, size, tokens, text) for size, tokens in paid.items())
    best = min(choices, key=lambda c: c.error)
    same = [min(choices, key=lambda c: law(draw, c.size, c.tokens)) is best for draw in fit.draws]
    return BudgetPlan(flops, text, most, best, choices, tuple(s for s in sizes if s not in paid), None,
                      sum(same) / len(same) if same else None, _beyond(fit, best))


def _choice(fit, size, tokens, text):
    return Choice(size, tokens, fit.error(size, tokens), fit.interval(lambda *draw: law(draw, size, tokens)),
                  scaling_flops(size, tokens, text))


def _beyond(fit, best):
    found = []
    for value, (least, most), what in ((best.size, fit.sizes, "billion parameters"),
                                       (best.tokens, fit.tokens, "image tokens")):
        if not least <= value <= most:
            found.append(f"{value:.3g} {what} lie outside the {least:g} to {most:g} that were measured")
    return tuple(found)
