"""One markdown table from a pytest-benchmark JSON: a row for each of our calls against each form it replaces.

    pytest benchmarks -q --benchmark-json=results.json && python benchmarks/report.py results.json

Times are the fastest round (a busy machine only ever adds time). A ratio above 1 means that we are faster than the
other form of the same case, shape, dtype and device, timed in the same run.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

OURS = "budgetprune"  # providers whose name begins so are ours
HEAD = ["op", "case", "shape", "ours", "us", "against", "us", "ratio", "ours, rate"]


def case_of(entry):
    info = entry["extra_info"]
    rest = {k: v for k, v in (entry.get("params") or {}).items() if k not in ("provider", "shape", "dtype", "device")}
    return info["op"], info["case"], info["shape"], info["dtype"], info["device"], json.dumps(rest, sort_keys=True)


def microseconds(seconds):
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def rate(info):
    if info.get("GFLOP/s"):
        return f"{info['GFLOP/s']:.1f} GFLOP/s"
    return f"{info['GB/s']:.1f} GB/s" if info.get("GB/s") else ""


def shape_of(info):
    sizes = "x".join(map(str, info["sizes"][0]))
    return f"{info['shape']} {sizes}" + ("" if info["dtype"] == "float32" else f" {info['dtype']}")


def rows(entries):
    """One list of cells per pair of providers of a case: one of ours, one of others; ours alone where none is."""
    cases = defaultdict(dict)
    for entry in entries:
        cases[case_of(entry)][entry["extra_info"]["provider"]] = entry
    for (op, case, *_), providers in cases.items():
        ours = {name: entry for name, entry in providers.items() if name.startswith(OURS)}
        others = {name: entry for name, entry in providers.items() if name not in ours}
        for name, entry in ours.items():
            info, seconds = entry["extra_info"], entry["stats"]["min"]
            front = [op, "" if case == op else case.replace("_", " "), shape_of(info),
                     name.removeprefix(OURS).strip(), microseconds(seconds)]
            for other, theirs in others.items() or [("", None)]:
                other_seconds = theirs["stats"]["min"] if theirs else None
                ratio = [microseconds(other_seconds), f"{other_seconds / seconds:.2f}x"] if theirs else ["", ""]
                yield [*front, other, *ratio, rate(info)]


def markdown(results: dict) -> str:
    """The table of a loaded JSON, one per device, each under a line that says where and when it was timed."""
    if not results["benchmarks"]:
        raise ValueError("results must hold at least one benchmark, got none")
    devices = defaultdict(list)
    for entry in results["benchmarks"]:
        devices[entry["extra_info"]["device"]].append(entry)
    lines = []
    for device, entries in devices.items():
        info = entries[0]["extra_info"]
        cuda = f", CUDA {info['cuda']}" if info["cuda"] else ""
        lines += [f"{device}, {info['threads']} threads, torch {info['torch']}{cuda}, commit {info['commit']}, "
                  f"{results['datetime'][:10]}. Fastest round; a ratio above 1 means that we are faster.", "",
                  "| " + " | ".join(HEAD) + " |",
                  "|---|---|---|---|--:|---|--:|--:|--:|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in rows(entries)] + [""]
    return "\n".join(lines).rstrip("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    print(markdown(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
