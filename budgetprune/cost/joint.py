"""One budget of FLOPs for image tokens and layers: what pairs of both it pays for, and which of them to take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real

from ..checked import integer, number, one_of
from .flops import PrefillFlops, decoder_flops, prefill_flops, prefill_operators
from .hardware import Device, device, operators_ms
from .operators import decoder_operators
from .shapes import VlmShape

POLICIES = ("balanced", "tokens", "layers")


@dataclass(frozen=True)
class JointChoice:
    """keep: K, image tokens before the language model. layers: n of its layers that run. flops: of one prefill, the
    latency token and the choosing included. share: of the same prompt's on the model as it is. accuracy: of the table
    that it was chosen by, where there was one."""

    keep: int
    layers: int
    flops: int
    share: float
    accuracy: float | None = None


def joint_flops(shape: VlmShape, keep: int, layers: int, text_tokens: int, *, latency_tokens: int = 1,
                **options) -> PrefillFlops:
    """FLOPs of one prefill with K image tokens in n decoder layers, the others skipped.

    latency_tokens: 1 where a token in the prompt tells the budget, in all layers that run; 0 for none. options:
    those of prefill_flops but for stages; image tokens of one crop where image_tokens_in is left out.
    """
    length, lengths = _lengths(shape, keep, layers, text_tokens, latency_tokens, options)
    tokens, batch = _tokens(shape, options), options.get("batch", 1)
    whole = prefill_flops(shape, **{**options, "image_tokens_in": tokens}, kept=keep, text_tokens=length)
    decoder = decoder_flops(shape.decoder, lengths, attention=options.get("attention", "full"))
    return replace(whole, decoder=batch * decoder)


def joint_roofline_ms(shape: VlmShape, keep: int, layers: int, text_tokens: int, on: Device | str, *,
                      latency_tokens: int = 1, bytes_per_value: int | None = None, fused: bool = True,
                      **options) -> float:
    """Milliseconds of the same prefill by the roofline of a device, as `table` has them: a bound, not a measurement.

    The weights of a skipped layer are not read. bytes_per_value: None: those of the device's dtype. fused: see
    prefill_operators. The rest as joint_flops takes it; the choosing itself, few operations of one token, is left out.
    """
    on = device(on) if isinstance(on, str) else on
    length, lengths = _lengths(shape, keep, layers, text_tokens, latency_tokens, options)
    options = {**options, "image_tokens_in": _tokens(shape, options)}
    options.pop("selector_flops", None)
    parts = prefill_operators(shape, kept=keep, text_tokens=length, fused=fused, **options)
    inside = decoder_operators(shape.decoder, lengths, lengths, batch=options.get("batch", 1), fused=fused,
                               attention_as=options.get("attention", "full"))
    parts["decoder"] = [one for layer in inside for one in layer]
    width = on.bytes_per_value if bytes_per_value is None else integer("bytes_per_value", bytes_per_value, 1)
    return sum(operators_ms(part, on, bytes_per_value=width) for part in parts.values())


def _lengths(shape, keep, layers, text_tokens, latency_tokens, options):
    """(tokens that are no image's, tokens in each decoder layer)."""
    most = shape.decoder.layers
    integer("layers", layers, 1, most)
    if options.keys() & {"stages", "prune_layer"}:
        raise ValueError("stages and prune_layer must be left out: tokens go before the first layer here")
    length = integer("text_tokens", text_tokens) + integer("latency_tokens", latency_tokens)
    return length, [integer("keep", keep) + length] * layers + [0] * (most - layers)


def joint_frontier(shape: VlmShape, flops: int | float, text_tokens: int, *, prefix: int, least_keep: int = 1,
                   **options) -> list[JointChoice]:
    """The most image tokens that `flops` pay for with each number of layers, fewest layers first; numbers of layers
    that leave none of `least_keep` are left out, and so is a pair that another beats in one and equals in the other.

    flops: an int is an amount, a float the fraction of the model's own prefill of the same prompt; all tokens in all
    layers cost a little more than 1, the latency token. prefix: layers that always run. options: as joint_flops takes
    them. ValueError: it does not pay for `least_keep` in the prefix.
    """
    tokens = _tokens(shape, options)
    integer("prefix", prefix, 1, shape.decoder.layers)
    integer("least_keep", least_keep, 1, tokens)
    allowed, full = _allowed(shape, flops, text_tokens, options)

    def cost(keep, layers):
        return joint_flops(shape, keep, layers, text_tokens, **options).total

    found = []
    for layers in range(prefix, shape.decoder.layers + 1):
        low, high = least_keep - 1, tokens
        while low < high:  # the cost rises with the tokens
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle, layers) <= allowed else (low, middle - 1)
        if low >= least_keep:
            paid = cost(low, layers)
            found.append(JointChoice(low, layers, paid, paid / full))
    if not found:
        least = cost(least_keep, prefix)
        raise ValueError(f"flops must pay for {least_keep} image tokens in {prefix} layers, {least:.4g} or "
                         f"{least / full:.4g} of the full prefill, got {flops:.4g}")
    return [pair for pair, more in zip(found, [*found[1:], None]) if more is None or more.keep < pair.keep]


def joint_budget(shape: VlmShape, flops: int | float, text_tokens: int, *, prefix: int, policy: str = "balanced",
                 accuracy: Mapping[tuple[int, int], float] | None = None, **options) -> JointChoice:
    """How to spend one budget of FLOPs on K image tokens and n layers.

    accuracy: {(K, n): measured accuracy}: the best pair of it that the budget pays for, the cheapest of equals.
    policy, without a table: "balanced" gives up tokens and layers by like shares (the largest smaller share of both);
    "tokens" gives up tokens first, and layers only where `least_keep` do not fit; "layers" the other way round.
    The other arguments are those of joint_frontier.

    ValueError: the budget pays for no pair, or for none of the table.
    """
    one_of("policy", policy, POLICIES)
    if accuracy is not None:
        return _measured(shape, flops, text_tokens, accuracy, prefix, **options)
    frontier = joint_frontier(shape, flops, text_tokens, prefix=prefix, **options)
    tokens, layers = _tokens(shape, options), shape.decoder.layers
    if policy == "tokens":
        return max(frontier, key=lambda pair: (pair.layers, pair.keep))
    if policy == "layers":
        return max(frontier, key=lambda pair: (pair.keep, pair.layers))
    return max(frontier, key=lambda pair: (min(pair.keep / tokens, pair.layers / layers), pair.flops))


def _measured(shape, flops, text_tokens, accuracy, prefix, least_keep=1, **options):
    if not isinstance(accuracy, Mapping) or not accuracy:
        raise ValueError(f"accuracy must hold at least one pair {{(K, n): accuracy}}, got {accuracy!r}")
    allowed, full = _allowed(shape, flops, text_tokens, options)
    found = []
    for (keep, layers), value in accuracy.items():
        number(f"accuracy[{keep}, {layers}]", value, 0, 1)
        cost = joint_flops(shape, keep, layers, text_tokens, **options).total
        if layers >= prefix and keep >= least_keep and cost <= allowed:
            found.append(JointChoice(keep, layers, cost, cost / full, value))
    if not found:
        raise ValueError(f"accuracy must hold a pair that {allowed:.4g} FLOPs pay for, with at least {least_keep} "
                         f"image tokens and {prefix} layers; got {', '.join(map(str, accuracy))}")
    return max(found, key=lambda pair: (pair.accuracy, -pair.flops))


def _tokens(shape, options):
    given = options.get("image_tokens_in")
    return shape.tokens_per_crop if given is None else integer("image_tokens_in", given, 1)


def _allowed(shape, flops, text_tokens, options):
    """(FLOPs that may be spent, those of the model as it is)."""
    own = {name: value for name, value in options.items()
           if name not in ("latency_tokens", "selector_flops", "image_tokens_in")}
    tokens = _tokens(shape, options)
    full = prefill_flops(shape, tokens, tokens, text_tokens, **own).total
    return _amount(flops, full), full


def _amount(flops, full):
    if isinstance(flops, bool) or not isinstance(flops, Real):
        raise TypeError(f"flops must be an int (an amount) or a float (a fraction of the full prefill), got {flops!r}")
    if isinstance(flops, int):
        return integer("flops", flops, 1)
    return number("flops", flops, 0, 2) * full  # all of both costs a little more than the full prefill
