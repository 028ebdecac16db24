"""What the small experiment says, in words that are made from its committed results: true whatever they are."""

from itertools import combinations

from paper import measured, off_zero, results, source, words
from scipy.stats import kendalltau

from budgetprune.catalog import find
from budgetprune.study.paper import TITLES

# He et al., DiffPrune, arXiv 2605.28051: {tokens of 576: points that a Gumbel straight-through selector loses}.
PUBLISHED = {64: 8.1, 128: 6.0, 192: 4.3}


def at(keeps) -> str:
    """Budgets in words."""
    return f"K = {words(sorted(keeps))}"


def time_block() -> str:
    result = results()
    seconds = result["seconds"]
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    return f"All of it took {took} of work. {source(result)}"


def floor_block() -> str:
    """Which settings of training are worse than none."""
    result = results()
    floor, least = ({row["keep"]: value(row) for row in result["floor"]}
                    for value in (lambda row: row["accuracy"], lambda row: row["ci95"][0]))
    worse = {name: [c for c in result["ablations"] if c["variant"] == name
                    and c["value"] + (c["half"] or 0) < least[c["keep"]]] for name in TITLES}
    found = [f"{TITLES[name]}: " + words(f"{c['value']:.3f} against {floor[c['keep']]:.3f} at K = {c['keep']}"
                                         for c in cells) for name, cells in worse.items() if cells]
    if not found:
        return "No setting trains to less than `random`, which does not train at all."
    return ("Trained to less than `random`, which does not train at all, with intervals apart: "
            f"{'; '.join(found)}.")


def noise_words() -> str:
    """The published contrast beside ours."""
    result = results()
    published = words(f"{lost} at {tokens} ({tokens / 576:.0%})" for tokens, lost in PUBLISHED.items())
    lines = [f"He et al. (DiffPrune, arXiv 2605.28051) report that a Gumbel straight-through selector loses against "
             f"their noise relaxation, in points: {published} of LLaVA's 576 tokens."]
    for name, title in (("gate=features", "gates on gathered features, the usual straight-through form"),
                        ("estimator=fermi", "gates in attention, where the relaxation is its only difference")):
        cells = [c for c in result[f"against {name}"] if c["variant"] == "gate=noise"]
        lines.append(f"Against {title}, ours is {standing(cells)}.")
    return " ".join(lines)


def standing(cells) -> str:
    """At which K the difference is above zero, below, and neither."""
    kinds = {"ahead": [], "behind": [], "not to be told from it": []}
    for cell in cells:
        low, high = (cell["low"], cell["high"]) if "low" in cell else (
            (cell["value"] - cell["half"], cell["value"] + cell["half"]) if off_zero(cell) else (-1, 1))
        kinds["ahead" if low > 0 else "behind" if high < 0 else "not to be told from it"].append(cell)
    parts = []
    for kind, some in kinds.items():
        if some:
            most = max(some, key=lambda cell: abs(cell["value"]))
            by = f", by {'up to ' * (len(some) > 1)}{abs(most['value']):.3f}" if kind in ("ahead", "behind") else ""
            parts.append(f"{kind} at {at(cell['keep'] for cell in some)}{by}")
    return "; ".join(parts)


def answer_block() -> str:
    """Whether a trained choice beats those without training, per task and method."""
    cells = results()["against training-free"]
    lines = []
    for task, method in dict.fromkeys((cell["task"], cell["method"]) for cell in cells):
        own = [cell for cell in cells if (cell["task"], cell["method"]) == (task, method)]
        lines.append(f"- `{method}` on `{task}`: {standing(own)}.")
    return "Against the best training-free method before the language model, at each K of 64 tokens:\n\n" + "\n".join(
        lines)


def inside_block() -> str:
    """The best inside the language model beside the best before it, with what they cost."""
    lines = ["| | best before the language model | best inside it |", "|---|---|---|"]
    said = []
    for task in results()["methods"]:
        exact, full, _ = measured(task)
        gains = {}
        for keep in sorted({r.keep for r in exact}):
            sides = [[r for r in exact if r.keep == keep and (find(r.method).place == "llm") == inside]
                     for inside in (False, True)]
            if all(sides):
                best = [max(side, key=lambda r: (r.accuracy, -r.prefill_flops)) for side in sides]
                shares = [r.prefill_flops / full.prefill_flops for r in best]
                gains[keep] = best[1].accuracy - best[0].accuracy, *shares
                lines.append(f"| `{task}`, K = {keep} | " + " | ".join(
                    f"`{r.method}` {r.accuracy:.3f} · {share:.0%}" for r, share in zip(best, shares)) + " |")
        if gains:
            said.append(_inside_words(task, gains))
    return "\n".join([*lines, "", " ".join(said)])


def _inside_words(task, gains) -> str:
    ahead = {keep: gain for keep, (gain, *_) in gains.items() if gain > 0.01}
    costs = [(f"{min(side):.0%}", f"{max(side):.0%}") for side in list(zip(*gains.values()))[1:]]
    says = (f"the methods inside are more accurate at {at(ahead)}, by up to {max(ahead.values()):.3f}" if ahead else
            "the methods inside are nowhere more accurate by over 0.01")
    return (f"On `{task}` {says}; the best of them cost {' to '.join(costs[1])} of the full model's prefill FLOPs, the "
            f"best before the language model {' to '.join(costs[0])}.")


def ranks_block() -> str:
    """Whether the tasks rank the methods alike, at each K."""
    lines = []
    for one, other in combinations(results()["methods"], 2):
        left, right = ({(r.keep, r.method): r.accuracy for r in measured(task)[0]} for task in (one, other))
        taus = []
        for keep in sorted({keep for keep, _ in left.keys() & right.keys()}):
            both = sorted(cell for cell in left.keys() & right.keys() if cell[0] == keep)
            tau = kendalltau([left[cell] for cell in both], [right[cell] for cell in both]).statistic
            taus.append(f"{tau:.2f} at K = {keep}" if tau == tau else f"none at K = {keep}, where all are alike")
        names = {m for _, m in left.keys() & right.keys()}
        lines.append(f"Kendall's tau between the rankings of {len(names)} methods "
                     f"on `{one}` and on `{other}` (1: the same order, 0: unrelated): {words(taus)}. Within 0.01 of "
                     f"the full model, where the order says little: {'; '.join(map(_near, (one, other)))}.")
    return "\n".join(lines) or "One task only: there is no second ranking."


def _near(task) -> str:
    exact, full, _ = measured(task)
    counts = [(keep, sum(r.keep == keep and r.accuracy > full.accuracy - 0.01 for r in exact))
              for keep in sorted({r.keep for r in exact})]
    return f"on `{task}` " + words(f"{count} at K = {keep}" for keep, count in counts)


def compressors_words() -> str:
    """One sentence: the best compressor at each K beside the pruner that hears the question."""
    result = results()
    own = {cell["keep"]: cell["value"] for cell in result["question"] if cell["variant"] == "the question too"}
    parts = []
    for keep in sorted({row["keep"] for row in result["compressors"]}):
        best = max((row for row in result["compressors"] if row["keep"] == keep), key=lambda row: row["accuracy"])
        parts.append(f"at K = {keep} `{best['method']}` has {best['accuracy']:.3f}, `adaptive_query` {own[keep]:.3f}")
    return f"The best compressor beside the pruner: {'; '.join(parts)}."


BLOCKS = {"paper time": time_block, "paper floor": floor_block, "paper noise words": noise_words,
          "paper answer": answer_block, "paper inside": inside_block, "paper ranks": ranks_block,
          "paper compressors words": compressors_words}
