"""One markdown table from a pytest-benchmark JSON: a row for each of our calls against each form it replaces.

    pytest benchmarks -q --benchmark-json=results.json && python benchmarks/report.py results.json

On the CPU times are the fastest round (a busy machine only ever adds time); on a GPU the median of graph replays with
warm caches. A ratio above 1 means that we are faster than the
other form of the same case, shape, dtype and device, timed in the same run.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from generate_table import generate_table, is_generate

OURS = "budgetprune"  # providers whose name begins so are ours
HEAD = ["op", "case", "shape", "ours", "us", "against", "us", "ratio", "ours, rate"]


def case_of(entry):
    info = entry["extra_info"]
    rest = {k: v for k, v in (entry.get("params") or {}).items() if k not in ("provider", "shape", "dtype", "device")}
    return info["op"], info["case"], info["shape"], info["dtype"], info["device"], json.dumps(rest, sort_keys=True)


def microseconds(seconds):
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def seconds_of(entry):
    """What counts as the time of an entry."""
    info = entry["extra_info"]
    return info["hot_us"] * 1e-6 if "hot_us" in info else entry["stats"]["min"]


def rate(info):
    """FLOP/s or bytes/s, with the share of what the chip was measured to reach."""
    ceilings = info.get("ceilings", {})
    if info.get("GFLOP/s"):
        share = f", {info['GFLOP/s'] / 1e3 / ceilings['matmul TFLOP/s']:.0%}" if ceilings else ""
        return f"{info['GFLOP/s']:,.1f} GFLOP/s{share}"
    share = f", {info['GB/s'] / ceilings['copy GB/s']:.0%}" if ceilings and info.get("GB/s") else ""
    return f"{info['GB/s']:,.1f} GB/s{share}" if info.get("GB/s") else ""


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
            info, seconds = entry["extra_info"], seconds_of(entry)
            front = [op, "" if case == op else case.replace("_", " "), shape_of(info),
                     name.removeprefix(OURS).strip(), microseconds(seconds)]
            for other, theirs in others.items() or [("", None)]:
                other_seconds = seconds_of(theirs) if theirs else None
                ratio = [microseconds(other_seconds), f"{other_seconds / seconds:.2f}x"] if theirs else ["", ""]
                yield [*front, other, *ratio, rate(info)]


def markdown(results: dict) -> str:
    """The table of a loaded JSON, one per device, each under a line that says where and when it was timed."""
    if not results["benchmarks"]:
        raise ValueError("results must hold at least one benchmark, got none")
    devices, whole = defaultdict(list), defaultdict(list)
    for entry in results["benchmarks"]:
        (whole if is_generate(entry) else devices)[entry["extra_info"]["device"]].append(entry)
    lines = []
    for device, entries in devices.items():
        info = entries[0]["extra_info"]
        gpu = "hot_us" in info
        where = f"CUDA {info['cuda']}" if gpu else f"{info['threads']} threads"
        what = "Median of graph replays, caches warm; rates with their share of a measured copy or matrix product" \
            if gpu else "Fastest round"
        lines += [f"{device}, {where}, torch {info['torch']}, commit {info['commit']}, {results['datetime'][:10]}. "
                  f"{what}; a ratio above 1 means that we are faster.", "",
                  "| " + " | ".join(HEAD) + " |",
                  "|---|---|---|---|--:|---|--:|--:|--:|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in rows(entries)] + [""]
    for entries in whole.values():
        lines += [generate_table(entries, results["datetime"][:10]), ""]
    return "\n".join(lines).rstrip("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    print(markdown(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
