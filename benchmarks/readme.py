"""Writes the generated blocks and pictures of README and docs, from the committed results and the methods' classes.
Every number there comes from here.

    python benchmarks/readme.py                     rewrite README.md, benchmarks/README.md and docs
    python benchmarks/readme.py --demo runs/demo    first take over a demo's records
    python benchmarks/readme.py --bench latest.json first take over what `make bench` measured
    python benchmarks/readme.py --paper runs/paper-small  first take over the small experiment
    python benchmarks/readme.py --joint runs/joint  first take over what benchmarks/joint.py measured
"""

import argparse
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import joint
import methods
import paper
import paper_words
import promised
from positions import positions_table
from report import OURS, case_of, markdown, seconds_of
from scaling import scaling_block
from table import render_benchmarks

from budgetprune.evaluation import latest, read, write_chart_svg

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEMO, BENCH = RESULTS / "demo", RESULTS / "cpu.json"
# README shows these rows of benchmarks/README.md: every op at its LLaVA-1.5 size, in the default estimator.
SHOWN = {(op, "llava15") for op in ("gumbel_topk", "select_topk", "gather_tokens", "gated_attention", "greedy_select",
                                    "merge_tokens")}
SHOWN |= {("attention_received", "llava15_b1"), ("fastv_select", "llava15_b1")}
LESS_WORK = "torch.topk alone", "sdpa"  # timed as a measure; they give no replacement for the op


def demo_table(records) -> str:
    """One row per method, one column per K: accuracy, and the share of the full model's prefill FLOPs."""
    full = next(r for r in records if r.method == "none")
    exact = [r for r in records if r.method != "none" and not r.method_options.get("count")]
    keeps = sorted({r.keep for r in exact})
    lines = ["| | " + " | ".join(f"K = {k}" for k in keeps) + f" | all {full.keep} |",
             "|---|" + "--:|" * (len(keeps) + 1)]
    cells = {(r.method, r.keep): f"{r.accuracy:.3f} · {r.prefill_flops / full.prefill_flops:.0%}" for r in exact}
    best = {k: max(r.accuracy for r in exact if r.keep == k) for k in keeps}
    for record in exact:
        if record.accuracy == best[record.keep]:
            key = record.method, record.keep
            cells[key] = f"**{cells[key].split(' ')[0]}** {cells[key].split(' ', 1)[1]}"
    for method in sorted({r.method for r in exact}, key=lambda m: -sum(r.accuracy for r in exact if r.method == m)):
        row = [cells.get((method, k), "") for k in keeps]
        lines.append(f"| `{method}` | " + " | ".join(row) + " | |")
    lines.append("| full model" + " |" * (len(keeps) + 1) + f" {full.accuracy:.3f} · 100% |")
    for r in records:
        if r.method_options.get("count"):
            lines.append(f"\n`{r.method}`, choosing its count itself, kept {r.kept_mean:.1f} tokens: {r.accuracy:.3f}.")
    lines.append(f"\n{full.samples} held-out questions a cell, 95 % intervals in the report. `make demo`, "
                 f"{full.device}, torch {full.torch}, {full.time[:10]}, commit {full.commit}.")
    return "\n".join(lines)


def bench_table(results: dict) -> str:
    """The rows of SHOWN, each against the fastest of its baselines."""
    cases = defaultdict(lambda: ([], []))
    for entry in results["benchmarks"]:
        info = entry["extra_info"]
        if (info["op"], info["shape"]) not in SHOWN or info["dtype"] != "float32" or info["provider"] in LESS_WORK:
            continue
        ours, others = cases[case_of(entry)]
        if not info["provider"].startswith(OURS):
            others.append(entry)
        elif not info["provider"].endswith(("fermi", "softmax")):
            ours.append(entry)
    return markdown(results | {"benchmarks": [entry for ours, others in cases.values()
                                              for entry in (*ours, min(others, key=seconds_of))]})


def without_rounds(results: dict) -> dict:
    """The same without the time of every single round, which are megabytes, and without the machine's name."""
    for entry in results["benchmarks"]:
        entry["stats"].pop("data", None)
    kept = ("datetime", "version", "benchmarks")
    return {name: results[name] for name in kept}


def fill(text: str, name: str, block: str) -> str:
    """`text` with the block between its marks replaced; ValueError where there are no marks."""
    marks = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"the page has no block 'generated: {name}'")
    return marks.sub(lambda m: f"{m[1]}{block}\n{m[2]}", text)


def render(text: str) -> str:
    """README with all its generated blocks made anew from the committed results."""
    text = fill(text, "demo table", demo_table(latest(read(DEMO / "records.jsonl"))))
    text = fill(text, "methods table", methods.methods_table())
    text = fill(text, "scaling law", scaling_block())
    text = fill(text, "paper question", paper.question_block())
    text = fill(text, "paper time", paper_words.time_block())
    return fill(text, "bench table", bench_table(json.loads(BENCH.read_text())))


def render_methods(text: str) -> str:
    """docs/methods.md: what the classes say, and what it costs."""
    text = fill(methods.with_sections(text), "cost table", methods.costs_table())
    text = fill(text, "positions table", positions_table())
    for name in methods.everything():
        text = fill(text, f"method {name}", methods.method_section(name))
    return text


def render_experiment(text: str) -> str:
    for name, block in (paper.BLOCKS | paper_words.BLOCKS).items():
        text = fill(text, name, block())
    return text


def render_depth(text: str) -> str:
    return fill(text, "joint table", joint.block())


def render_cost(text: str) -> str:
    return fill(text, "promised table", promised.block(read(DEMO / "records.jsonl")))


def render_integrations(text: str) -> str:
    return fill(text, "vllm table", methods.vllm_table())


# {page: what makes it anew from what it is}
PAGES = {ROOT / "README.md": render, ROOT / "benchmarks" / "README.md": lambda text: render_benchmarks(),
         ROOT / "docs" / "methods.md": render_methods, ROOT / "docs" / "integrations.md": render_integrations,
         ROOT / "docs" / "experiment.md": render_experiment, ROOT / "docs" / "depth.md": render_depth,
         ROOT / "docs" / "cost.md": render_cost}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder of a demo run to take the records from")
    parser.add_argument("--bench", type=Path, help="JSON of pytest-benchmark to take over")
    parser.add_argument("--paper", type=Path, help="folder of a small experiment to take the results from")
    parser.add_argument("--joint", type=Path, help="folder of benchmarks/joint.py to take the results from")
    arguments = parser.parse_args()
    if arguments.joint:
        shutil.copy(arguments.joint / joint.RESULTS, joint.COMMITTED)
    if arguments.paper:
        paper.RESULTS.write_text(paper.taken_over(arguments.paper))
    if arguments.bench:
        RESULTS.mkdir(parents=True, exist_ok=True)
        BENCH.write_text(json.dumps(without_rounds(json.loads(arguments.bench.read_text())), indent=1) + "\n")
    if arguments.demo:
        DEMO.mkdir(parents=True, exist_ok=True)
        shutil.copy(arguments.demo / "records.jsonl", DEMO / "records.jsonl")
        shutil.copy(arguments.demo / "pruners" / "adaptive" / "train_log.jsonl", DEMO / "train_log.jsonl")
        write_chart_svg(latest(read(DEMO / "records.jsonl")), DEMO / "accuracy_vs_flops.svg")
    for page, made in PAGES.items():
        page.write_text(made(page.read_text()))


if __name__ == "__main__":
    main()
