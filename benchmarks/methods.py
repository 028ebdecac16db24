"""What README and docs say of each method, made from its class: attributes, docstring, options, costs by formula."""

import inspect
import re

from budgetprune.catalog import available as everything
from budgetprune.catalog import build, find
from budgetprune.compress import Compressor, priced
from budgetprune.cost import prefill_flops
from budgetprune.cost.shapes import known
from budgetprune.integrations.fixed_count import FixedCount
from budgetprune.selectors import available
from budgetprune.selectors.base import Selector

DEPTH = 32  # decoder layers of LLaVA-1.5-7B, which the published stages are given for
MODEL, TOKENS, KEEP, TEXT = "llava-1.5-7b", 576, 144, 64
PAPER = re.compile(r"[A-Z][\w-]+ et al\.,? (?:[A-Z]+ )?\d{4}")


def paper(cls: type[Selector]) -> str:
    """The first citation of a docstring: by convention that of the method itself."""
    found = PAPER.search(" ".join(inspect.getdoc(cls).split()))
    return found[0] if found else ""


def where(cls: type[Selector]) -> str:
    if cls.name == "none":
        return ""
    if cls.place == "vision":
        return "behind the projector" if cls.after_projector else "before the projector"
    layers = [str(layer) for layer in build(cls.name).layers(DEPTH)]
    listed = " and ".join([", ".join(layers[:-1]), layers[-1]]) if len(layers) > 1 else layers[0]
    return f"in the language model, before layer{'s' if len(layers) > 1 else ''} {listed}"


def sees(cls: type[Selector]) -> str:
    """What a method asks for beside the features of the tokens."""
    inside, seen = cls.place == "llm", []
    if "attention" in cls.needs and inside:
        seen.append("attention of the last token" if cls.rows is Selector.rows else "attention of chosen words")
    elif "attention" in cls.needs:
        seen.append("attention (of CLS, else the mean)")
    seen += [name for name in ("keys", "grid") if name in cls.needs]
    if "text" in cls.needs:
        seen.append("words behind the image" if inside else "words")
    if cls.fixed_count and cls.heard is not Compressor.heard:
        seen.append("layers of the tower")
    block = f" of block {cls.tower_layer}" if cls.tower_layer != -1 and cls.needs & {"attention", "keys"} else ""
    return ", ".join(seen) + block


def asks(cls: type[Selector]) -> bool:
    """Whether another question about the same image may leave other tokens."""
    return cls.place == "llm" or "text" in cls.needs


def count(cls: type[Selector]) -> str:
    if cls.name == "none":
        return "all"
    exact = "exact" if cls.place == "vision" else "exact from the last layer named"
    return f"{exact}, or its own" if cls.adaptive_count else exact


def row(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def methods_table() -> str:
    """One row per method."""
    head = ["method", "paper", "where", "sees, beside features", "asks the question", "count", "merges", "trained",
            "position ids"]
    lines = [row(head), "|---" * len(head) + "|"]
    for cls in map(find, available()):
        flags = ["yes" if flag else "" for flag in (cls.merges, cls.trainable)]
        lines.append(row([f"`{cls.name}`", paper(cls), where(cls), sees(cls), "yes" if asks(cls) else "", count(cls),
                          *flags, cls.positions if cls.name != "none" else ""]))
    return "\n".join(lines)


def costs_table() -> str:
    """FLOPs of every method at one budget, compressors included."""
    shape = known(MODEL)
    full = prefill_flops(shape, TOKENS, TOKENS, TEXT).total
    lines = [row(["method", "tokens, mean over layers", "selection, GFLOP", "prefill, of the full model's"]),
             "|---|--:|--:|--:|"]
    for cls in map(find, everything()):
        if cls.name == "none":
            continue
        method, inside = build(cls.name), cls.place == "llm"
        if cls.trainable and not cls.fixed_count:
            method.bind(shape.tower.hidden, TOKENS, shape.decoder.hidden)
        width = shape.decoder.hidden if inside or cls.after_projector else shape.tower.hidden
        own = priced(method, shape, KEEP, TEXT) if cls.fixed_count else method.flops(TOKENS, width, KEEP)
        depth = shape.decoder.layers
        total = prefill_flops(shape, TOKENS, TOKENS if inside else KEEP, TEXT, selector_flops=own,
                              stages=method.stages(TOKENS, KEEP, depth),
                              projected="all" if inside or cls.after_projector else "kept").total
        lines.append(row([f"`{cls.name}`", f"{method.average(TOKENS, KEEP, depth):.0f}", f"{own / 1e9:.3f}",
                          f"{total / full:.1%}"]))
    return "\n".join([*lines, "", f"{MODEL}, {TOKENS} image and {TEXT} text tokens, K = {KEEP}; 2 x multiply-adds, by "
                      "formula. Operations are not time: a selection in many small steps takes longer than these say. "
                      "`quecc` is charged for the language model that reads the question, as if all the text were it."])


def vllm_table() -> str:
    """Which methods fit a host that sizes the prompt first, and why the others do not."""
    groups: dict[str, list[str]] = {}
    for name in available():
        if name == "none":
            continue
        try:
            groups.setdefault("", []).append(FixedCount(name, keep=4).selector.name)
        except ValueError as error:
            groups.setdefault(str(error).split(f"got {name}: ")[1], []).append(name)
    lines = [row(["method", "in vLLM", "why not"]), "|---|---|---|"]
    for reason, names in sorted(groups.items()):
        said = "refused" if reason else "yes, `keep` an int or a float"
        lines.append(row([", ".join(f"`{name}`" for name in names), said, reason]))
    own = [f"`{name}`" for name in groups[""] if find(name).adaptive_count]
    return "\n".join([*lines, row([f"{', '.join(own)} with `keep=None`", "refused", "the count depends on the image"])])


def options(cls: type[Selector]) -> dict:
    """{name: default} of every option."""
    return {p.name: p.default for p in inspect.signature(cls).parameters.values()}


def method_section(name: str) -> str:
    """A method's docstring as paragraphs, and its options."""
    cls = find(name)
    own, text = options(cls), inspect.getdoc(cls)
    for option in own:  # a line "order: ..." is that option's own paragraph
        text = re.sub(rf"\n{option}: ", f"\n\n`{option}`: ", text)
    formula, *rest = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    rest = [re.sub(r"(?<!\S)(Departures[^:]*):", r"**\1:**", part) for part in rest]
    seen = sees(cls) and f"Beside the features it sees: {sees(cls)}."
    shown = ", ".join(f"{option}={default!r}" for option, default in own.items())
    facts = [f"Acts {where(cls)}." if where(cls) else "", seen, f"Options: `{shown}`." if shown else "No options."]
    return "\n\n".join([f"**{formula}**", *rest, " ".join(filter(None, facts))]).replace("<", "&lt;")


def with_sections(text: str) -> str:
    """docs/methods.md with a section for every method; a new one's is added at the end."""
    for name in everything():
        mark = f"<!-- generated: method {name} -->\n"
        if mark not in text:
            text = f"{text.rstrip()}\n\n### `{name}`\n\n{mark}<!-- end -->\n"
    return text
