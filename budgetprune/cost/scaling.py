"""Model size against image tokens: the law of "Inference Optimal VLMs Need Only One Visual Token but Larger Models".

error(N, V) = a N^-alpha V^-beta + D, with N in billions of language-model parameters and V in image tokens of a prompt
(Li et al., 2024, arXiv 2411.03312). numpy and scipy wake inside the functions that fit.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from ..checked import integer, number, one_of

TASKS = ("visual-reasoning", "ocr")
# Of visual reasoning; the authors print neither a nor D, and nothing for OCR.
PUBLISHED = {"alpha": 0.077, "beta": 0.015}
DRAWS = 400
_SHARES = (0.05, 0.3, 0.6, 0.9)  # starting points of D, as parts of the smallest error


def positive(name: str, value) -> float:
    """A finite number above 0; TypeError and ValueError name it."""
    if number(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return float(value)


@dataclass(frozen=True, order=True)
class ScalingPoint:
    """One measured model at one count. size: billions of parameters; tokens: image tokens; error: 1 - accuracy.

    ValueError or TypeError names the field that is no number, not above 0, or no fraction.
    """

    size: float
    tokens: float
    error: float

    def __post_init__(self):
        positive("size", self.size)
        positive("tokens", self.tokens)
        number("error", self.error, 0, 1)


@dataclass(frozen=True)
class ScalingFit:
    """The law fitted to points: error = a N^-alpha V^-beta + d.

    a, d: errors, fractions. sse: sum of squared differences over the n points. sizes, tokens: (least, most) of the
    points, in billions and image tokens; anything outside is extrapolation.
    draws: (a, alpha, beta, d) of every bootstrap fit. intervals: the central 95 % of a, alpha, beta, d and of
        "ratio", alpha / beta; None where there are no draws.
    """

    a: float
    alpha: float
    beta: float
    d: float
    sse: float
    n: int
    sizes: tuple[float, float]
    tokens: tuple[float, float]
    intervals: dict[str, tuple[float, float]] | None = None
    draws: tuple[tuple[float, float, float, float], ...] = field(default=(), repr=False)

    @property
    def ratio(self) -> float:
        """alpha / beta: how many times faster the error falls with parameters than with tokens, in powers."""
        return self.alpha / self.beta if self.beta else math.inf

    def error(self, size, tokens) -> float:
        """The predicted error, a fraction, of `size` billions and `tokens` image tokens; ValueError: not above 0."""
        return law((self.a, self.alpha, self.beta, self.d), positive("size", size), positive("tokens", tokens))

    def interval(self, value) -> tuple[float, float] | None:
        """The central 95 % of value(a, alpha, beta, d) over the bootstrap fits; None where there are none."""
        return _central([value(*draw) for draw in self.draws]) if self.draws else None


@dataclass(frozen=True)
class HoldOut:
    """A model size predicted from all others. mean, most: relative differences of its errors, fractions."""

    size: float
    fit: ScalingFit
    mean: float
    most: float


def law(values, size, tokens) -> float:
    """a N^-alpha V^-beta + d of values (a, alpha, beta, d); size in billions, tokens counted, the error a fraction."""
    a, alpha, beta, d = values
    return a * size**-alpha * tokens**-beta + d


def scaling_flops(size, tokens, text_tokens) -> float:
    """FLOPs of one prefill as the law's paper counts them: 2 N (Q + V).

    size: billions of parameters. Attention's square term, the vision tower and the projector are not in it:
    prefill_flops counts those. ValueError and TypeError name the argument.
    """
    return 2e9 * positive("size", size) * (number("text_tokens", text_tokens, 0) + number("tokens", tokens, 0))


def best_tokens(alpha, beta, text_tokens, most=math.inf) -> float:
    """V at which a budget of FLOPs gives the least error, the model being as large as the rest of it pays for.

    V = beta Q / (alpha - beta), kept within [1, most]; where alpha is not above beta, `most`: tokens are then worth
    more than parameters at any count. Q: text tokens (0 where their cache is reused, which makes V = 1). Not
    rounded. The paper's released code finds the same by a grid and draws 14 for Q = 50, where its exponents give
    12.1. ValueError: alpha is not above 0, most is below 1; TypeError: no number.
    """
    alpha, beta, text = positive("alpha", alpha), number("beta", beta), number("text_tokens", text_tokens, 0)
    if isinstance(most, bool) or not isinstance(most, (int, float)):
        raise TypeError(f"most must be a number, got {most!r}")
    if not most >= 1:
        raise ValueError(f"most must be at least 1, got {most}")
    return min(max(beta * text / (alpha - beta), 1.0), float(most)) if alpha > beta else float(most)


def _source() -> dict:
    return json.loads((Path(__file__).parent / "scaling_points.json").read_text(encoding="utf-8"))


def published_points(task="visual-reasoning") -> list[ScalingPoint]:
    """The points that the paper's authors published: Qwen-1.5 of 0.5 to 7 billions, 1 to 576 image tokens.

    28 of visual reasoning, 27 of OCR, whose last is a placeholder in the source (see published_notes).
    Source: the paper's repository, commit and file in scaling_points.json. ValueError: no such task.
    """
    rows = _source()
    accuracy = rows["tasks"][one_of("task", task, TASKS)]["accuracy"]
    return [ScalingPoint(float(size), tokens, round(1 - value, 12)) for size, values in accuracy.items()
            for tokens, value in zip(rows["tokens"], values, strict=True) if value is not None]


def published_notes(task="visual-reasoning") -> list[str]:
    """What is doubtful about the published points of a task, in sentences. ValueError: no such task."""
    return _source()["tasks"][one_of("task", task, TASKS)]["notes"]


def fit_scaling(points, *, draws=DRAWS, seed=0) -> ScalingFit:
    """Least squares of the law over `points`, D not below 0, with bootstrap intervals.

    Deterministic: the same points in any order give the same fit to the last bit. D at its bound is exactly 0.
    Intervals: residuals are drawn again around the fit, centred and widened for the parameters used. A resampling of
    points would lose some of the few sizes, and it keeps the residuals' pattern, which holds D of the published
    points at 0 in every draw as if it were known. They cover noise around the law and take all residuals as
    independent, which those of one model are not quite. D cannot be told from them: with 0.1 in place of 0 the SSE
    of the published points grows by a tenth, and alpha and beta by a fifth; alpha / beta stays 4.70.
    Departures from the released code: that walks a shuffled grid without a seed, stops after a fifth of it and gives
    another answer each time; it too takes V alone, the text tokens entering only the FLOPs.

    draws: bootstrap fits, 0 for none; there are none for fewer than 5 points, which four parameters may meet exactly.
    ValueError: fewer than 2 sizes or 2 counts, sizes and counts that only vary together, or errors all 0.
    """
    draws, seed = integer("draws", draws), integer("seed", seed)
    points = list(points)
    _check_spread(points)
    points.sort()
    import numpy as np

    x = np.log([[p.size, p.tokens] for p in points])
    y = np.array([p.error for p in points])
    middle = x.mean(0)
    x = x - middle  # centred, so that a's logarithm and the exponents are estimated nearly apart
    if np.linalg.matrix_rank(np.column_stack([np.ones(len(x)), x]), tol=1e-9 * len(x)) < 3:
        raise ValueError("points must not all lie on one line of size and tokens, which leaves alpha and beta one")
    found, sse = _solve(x, y)
    drawn = []
    if draws and len(points) > 4:
        fitted = _model(found, x)
        rest = y - fitted
        free = len(points) - 3 - (found[3] > 0)
        rest = (rest - rest.mean()) * math.sqrt(len(points) / free)
        random = np.random.default_rng(seed)
        for _ in range(draws):
            again = fitted + rest[random.integers(0, len(rest), len(rest))]
            drawn.append(_plain(_solve(x, again, found)[0], middle))
    values = _plain(found, middle)
    intervals = {name: _central([draw[i] for draw in drawn])
                 for i, name in enumerate(("a", "alpha", "beta", "d"))} if drawn else None
    if drawn:
        intervals["ratio"] = _central([draw[1] / draw[2] if draw[2] else math.inf for draw in drawn])
    sizes, tokens = [p.size for p in points], [p.tokens for p in points]
    return ScalingFit(*values, sse, len(points), (min(sizes), max(sizes)), (min(tokens), max(tokens)), intervals,
                      tuple(drawn))


def hold_out(points, size=None) -> HoldOut:
    """Fits without the models of `size` billions (the largest where None) and predicts them.

    ValueError: no point has that size, one of its errors is 0, or the rest cannot be fitted (see fit_scaling).
    """
    points = list(points)
    _check_spread(points)
    if size is None:
        size = max(p.size for p in points)
    held = [p for p in points if p.size == size]
    if not held:
        raise ValueError(f"size must be that of a point, got {size}")
    if any(p.error == 0 for p in held):
        raise ValueError(f"size must be of points with errors above 0, got {size} with an error of 0")
    fit = fit_scaling([p for p in points if p.size != size], draws=0)
    off = [abs(fit.error(p.size, p.tokens) / p.error - 1) for p in held]
    return HoldOut(size, fit, sum(off) / len(off), max(off))


def _check_spread(points):
    for point in points:
        if not isinstance(point, ScalingPoint):
            raise TypeError(f"points must be ScalingPoints, got {type(point).__name__}")
    for name, what in (("size", "model sizes"), ("tokens", "counts of image tokens")):
        values = sorted({getattr(p, name) for p in points})
        if len(values) < 2:
            raise ValueError(f"points must have at least 2 {what}, got {', '.join(f'{v:g}' for v in values) or 'none'}")
    if not any(p.error for p in points):
        raise ValueError("points must not all have an error of 0: nothing is left to explain")


def _model(theta, x):
    """theta: (log of a at the centre, alpha, beta, d)."""
    import numpy as np

    return np.exp(theta[0] - x @ np.asarray(theta[1:3])) + theta[3]


def _plain(theta, middle):
    """(a, alpha, beta, d) as floats, of sizes and tokens that are not centred."""
    c, alpha, beta, d = map(float, theta)
    return math.exp(c + alpha * float(middle[0]) + beta * float(middle[1])), alpha, beta, d


def _solve(x, y, near=None):
    """(theta, sse) of the least squares with d >= 0: the better of d = 0 and of d free above it, from fixed starts.

    A bounded solver only creeps up to the bound, so d = 0 is a problem of its own. near: a solution of nearly the
    same problem, which makes do with less searching.
    """
    import numpy as np
    from scipy.optimize import least_squares

    design = np.column_stack([np.ones(len(x)), -x])
    smallest, largest = float(y.min()), float(y.max())

    def start(d):  # with d given, the logarithm of the law is linear
        logs = np.log(np.maximum(y - d, 1e-3 * largest))
        return [*np.linalg.lstsq(design, logs, rcond=None)[0], d]

    def rest(theta):
        with np.errstate(over="ignore"):
            return np.exp(np.minimum(design @ theta[:3], 50.0)) + (theta[3] if len(theta) > 3 else 0.0) - y

    def slope(theta):
        power = np.exp(np.minimum(design @ theta[:3], 50.0))
        sides = power[:, None] * design
        return sides if len(theta) < 4 else np.column_stack([sides, np.ones(len(y))])

    options = dict(jac=slope, xtol=1e-13, ftol=1e-13, gtol=1e-13, max_nfev=400)
    zero = least_squares(rest, start(0.0)[:3] if near is None else near[:3], method="lm", **options)
    best, sse = [*zero.x, 0.0], float(2 * zero.cost)
    # Above the data on average with d = 0, a larger d makes it worse: near a known solution that is the answer.
    if smallest <= 0 or (near is not None and zero.fun.sum() >= 0):
        return best, sse
    limits = [-np.inf] * 3 + [0.0], [np.inf] * 3 + [largest]
    for share in _SHARES if near is None else _SHARES[1:2]:
        free = least_squares(rest, start(share * smallest), bounds=limits, x_scale="jac", **options)
        if 2 * free.cost < sse * (1 - 1e-9) - 1e-20 * float(y @ y):
            best, sse = list(free.x), float(2 * free.cost)
    return best, sse


def _central(values):
    """The 2.5th and the 97.5th percentile, as floats."""
    ordered = sorted(values)

    def at(share):  # between neighbours, as numpy's default; infinities stay what they are
        place = share * (len(ordered) - 1)
        low = ordered[math.floor(place)]
        high = ordered[math.ceil(place)]
        return low if low == high else low + (high - low) * (place - math.floor(place))

    return at(0.025), at(0.975)
