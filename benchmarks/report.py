"""Markdown tables from a pytest-benchmark JSON: one row per case and provider, with the ratio to the named baseline.

    pytest benchmarks -q --benchmark-json=results.json && python benchmarks/report.py results.json

Times are the fastest round (a busy machine only ever adds time), with the median beside it. A ratio above 1 means
faster than the baseline of the same case, shape, dtype and device, timed in the same run.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path


def case_of(entry):
    info = entry["extra_info"]
    rest = {k: v for k, v in (entry.get("params") or {}).items() if k not in ("provider", "shape", "dtype", "device")}
    return info["op"], info["case"], info["shape"], info["dtype"], info["device"], json.dumps(rest, sort_keys=True)


def microseconds(seconds):
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"


def rows(entries):
    """One list of cells per entry; the baseline's time is looked up among the entries of its case."""
    cases = defaultdict(dict)
    for entry in entries:
        cases[case_of(entry)][entry["extra_info"]["provider"]] = entry
    for (_, case, shape, dtype, _, _), providers in cases.items():
        for provider, entry in providers.items():
            info, stats = entry["extra_info"], entry["stats"]
            baseline = providers.get(info["baseline"])
            ratio = f"{baseline['stats']['min'] / stats['min']:.2f}x" if baseline else f"no {info['baseline']}"
            rate = f"{info['GB/s']:.1f}" if info.get("GB/s") else ""
            yield [case, shape, dtype, provider, microseconds(stats["min"]), microseconds(stats["median"]), rate, ratio]


def report(results):
    """The markdown text of a loaded JSON."""
    if not results["benchmarks"]:
        raise ValueError("results must hold at least one benchmark, got none")
    groups = defaultdict(list)
    for entry in results["benchmarks"]:
        info = entry["extra_info"]
        groups[info["op"], info["device"]].append(entry)
    lines = []
    for (op, device), entries in groups.items():
        info = entries[0]["extra_info"]
        cuda = f", CUDA {info['cuda']}" if info["cuda"] else ""
        lines += [f"### {op}", "",
                  f"{device}, {info['threads']} threads, torch {info['torch']}{cuda}, commit {info['commit']}, "
                  f"{results['datetime'][:10]}.", "",
                  "| case | shape | dtype | provider | fastest, us | median, us | GB/s | against baseline |",
                  "|---|---|---|---|---:|---:|---:|---:|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in rows(entries)] + [""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    print(report(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
