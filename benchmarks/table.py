"""Writes benchmarks/README.md from the committed results: the CPU's, and the newest of every GPU.

It needs nothing but the standard library, so that gpu_check.py can run it on a bare machine.
"""

import json
from pathlib import Path

from goals import goals_table
from report import markdown

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CPU = RESULTS / "cpu.json"


def newest_by_gpu():
    """The results of gpu_check.py, one file per GPU."""
    newest = {}
    for path in sorted(RESULTS.glob("*-20*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if not results["facts"]["dry_run"]:
            newest[results["facts"]["gpu"]] = results
    return newest


def gpu_section(name, results):
    facts = results["facts"]
    lines = [f"## {name}", "", f"`{facts['command']}`, {facts['date'][:10]}, commit {facts['commit']}, torch "
             f"{facts['torch']}, CUDA {facts['cuda']}, driver {facts['driver']}.", "",
             "| stage | | seconds | |", "|---|---|--:|---|"]
    lines += [f"| {s['name']} | {s['status']} | {s['seconds']:.0f} | {s['detail'][:200]} |" for s in results["stages"]]
    lines += ["", goals_table(results["benchmarks"], "cuda"), ""]
    if results["benchmarks"]:
        lines += [markdown(results), ""]
    for stage in results["stages"]:
        if stage["name"] == "ncu" and stage["found"]:
            lines += ["| kernel | us | DRAM throughput | SM throughput |", "|---|--:|--:|--:|"]
            lines += [f"| {kernel} | {of.get('us', '')} | {of.get('dram %', '')} % | {of.get('sm %', '')} % |"
                      for kernel, of in sorted(stage["found"].items())]
            lines.append("")
    return lines


def render_benchmarks() -> str:
    """benchmarks/README.md, whole."""
    gpus = newest_by_gpu()
    cpu = json.loads(CPU.read_text(encoding="utf-8"))
    lines = ["# Benchmarks", "", "A case is checked against the reference before it is timed. `make bench` makes the "
             "CPU's tables again, `make gpu-check` a GPU's." + ("" if gpus else " No GPU has been measured yet."), ""]
    for name, results in gpus.items():
        lines += gpu_section(name, results)
    if not gpus:
        lines += ["## Goals on one H100", "", goals_table([], "cuda"), ""]
    lines += ["## CPU", "", goals_table(cpu["benchmarks"], "cpu"), "", markdown(cpu)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "README.md").write_text(render_benchmarks(), encoding="utf-8")
