"""Everything that only a GPU can show, in one run: build, tests, sanitizers, timings, achieved bandwidth.

    make gpu-check                                  or, on a bare machine with torch, nvcc and pytest and no network:
    python3 benchmarks/gpu_check.py                 writes benchmarks/results/<gpu>-<date>.json and benchmarks/README.md
    python3 benchmarks/gpu_check.py --dry-run       the same stages and cases on the CPU; writes under build/ only
    python3 benchmarks/gpu_check.py --stages build,tests --minutes 4

Every stage has its share of the time; one that overruns is killed and noted, and the next begins. What was found is
written after each stage, so that an interrupted run leaves what it has. Exit status 0: nothing failed.
"""

import argparse
import csv
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu-check"
RESULTS = ROOT / "benchmarks" / "results"
# The share of the whole time that a stage may take.
SHARE = {"build": 0.25, "tests": 0.20, "cupy": 0.10, "sanitize": 0.14, "bench": 0.28, "generate": 0.13, "ncu": 0.09}
TOOLS = ("memcheck", "racecheck", "initcheck")
FIRST = {"bench_gumbel_topk", "bench_attention_received", "bench_gather_tokens", "bench_greedy_select"}  # have goals
METRICS = {"gpu__time_duration.sum": "us", "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram %",
           "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm %"}


@dataclass
class Stage:
    """What became of one stage. status: passed, failed, timed out, skipped."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    found: dict = field(default_factory=dict)


def run(command, log, seconds, environment=None):
    """(status, seconds taken): runs a command in a process group of its own, which is killed when time is up."""
    begin = time.monotonic()
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                   env=os.environ | (environment or {}), start_new_session=True)
        try:
            status = "passed" if process.wait(timeout=max(seconds, 1)) == 0 else "failed"
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = "timed out"
    return status, time.monotonic() - begin


def last_line(log, pattern=r"\S"):
    """The last line of a log that matches, without colours and rules; empty if none does."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace")).splitlines()
    return next((line.strip("= ") for line in reversed(lines) if re.search(pattern, line)), "")


class Check:
    """The run: its options, its environment and what it has found so far."""

    def __init__(self, options):
        self.options, self.dry = options, options.dry_run
        self.end = time.monotonic() + 60 * options.minutes
        self.environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "BENCH_SECONDS": "0.05",
                            "BUDGETPRUNE_BENCH_DEVICES": self.device}
        if self.dry:
            self.environment |= {"BUDGETPRUNE_DRY_RUN": "1", "BENCH_SECONDS": "0.002"}
        self.facts, self.stages, self.benchmarks = facts(self.dry), [], []

    @property
    def device(self):
        return "cpu" if self.dry else "cuda"

    def left(self, name):
        """Seconds this stage may take: its share, what earlier ones saved, and never more than is left."""
        later = sum(SHARE[stage] for stage in list(SHARE)[list(SHARE).index(name) + 1:] if stage in self.options.stages)
        left = self.end - time.monotonic()
        return max(5.0, left - 60 * self.options.minutes * later * 0.8)

    def pytest(self, name, arguments, environment=None, seconds=None):
        log = WORK / f"{name}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        status, seconds = run(command, log, seconds or self.left(name), self.environment | (environment or {}))
        return Stage(name, status, seconds, last_line(log, r"passed|failed|error|skipped") or last_line(log))

    def build(self):
        environment = {"BUDGETPRUNE_CUDA": "0" if self.dry else "1"}
        if not self.dry:
            import torch

            environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
        log = WORK / "build.log"
        status, seconds = run([sys.executable, "setup.py", "build_ext", "--inplace"], log, self.left("build"),
                              self.environment | environment)
        return Stage("build", status, seconds, last_line(log))

    def tests(self):
        which = ["-m", "cuda"] if not self.dry else ["-k", "random_shapes or contracts"]
        return self.pytest("tests", ["tests/ops", *which, "-x" if self.dry else "--maxfail=40"])

    def cupy(self):
        if self.dry:
            return Stage("cupy", "skipped", detail="needs a GPU; tests/ops/test_cupy_launch.py runs its launches here")
        return self.pytest("cupy", ["tests/ops", "-m", "cuda", "-k", "random_shapes or parity", "--maxfail=40"],
                           {"BUDGETPRUNE_CUDA_KERNELS": "cupy"})

    def sanitize(self):
        tool = shutil.which("compute-sanitizer")
        script = [sys.executable, "benchmarks/sanitize_run.py", self.device]
        if self.dry or tool is None:
            log = WORK / "sanitize.log"
            status, seconds = run(script, log, self.left("sanitize"), self.environment)
            why = "without the sanitizers, which need a GPU" if self.dry else "compute-sanitizer is not on PATH"
            return Stage("sanitize", status if self.dry else "skipped", seconds, f"{last_line(log)} ({why})")
        verdicts, status, begin = {}, "passed", time.monotonic()
        budget = self.left("sanitize") / len(TOOLS)
        for name in TOOLS:
            log = WORK / f"{name}.log"
            command = [tool, "--tool", name, "--kernel-name", "kernel_substring=budgetprune", "--error-exitcode", "9",
                       *script]
            got, _ = run(command, log, budget, self.environment)
            verdicts[name] = last_line(log, r"ERROR SUMMARY|RACECHECK SUMMARY") or f"{got}: {last_line(log)}"
            status = got if got != "passed" else status
        return Stage("sanitize", status, time.monotonic() - begin, "; ".join(f"{k}: {v}" for k, v in verdicts.items()),
                     verdicts)

    def bench(self):
        """File by file, for pytest-benchmark writes at the end: one that is killed takes no other along."""
        begin, until = time.monotonic(), time.monotonic() + self.left("bench")
        files = [path for path in (ROOT / "benchmarks").glob("bench_*.py") if path.stem != "bench_generate"]
        files.sort(key=lambda path: (path.stem not in FIRST, path.stem))
        said, status = {}, "passed"
        for path in files:
            if until - time.monotonic() < 5:
                said[path.stem], status = "not reached", "timed out"
                continue
            out = WORK / f"{path.stem}.json"
            out.unlink(missing_ok=True)
            arguments = [f"benchmarks/{path.name}", "--benchmark-disable-gc", f"--benchmark-json={out}"]
            stage = self.pytest(path.stem, arguments, seconds=until - time.monotonic())
            said[path.stem] = f"{stage.status}: {stage.detail}"
            status = stage.status if stage.status != "passed" else status
            self.take(out)
            self.write()
        bad = [f"{name} {text}" for name, text in said.items() if not text.startswith("passed")]
        return Stage("bench", status, time.monotonic() - begin,
                     f"{len(self.benchmarks)} cases" + "".join(f"; {text}" for text in bad), said)

    def take(self, out):
        """The entries that pytest-benchmark wrote, if it came that far; without the time of every round."""
        entries = json.loads(out.read_text())["benchmarks"] if out.exists() and out.stat().st_size else []
        for entry in entries:
            entry["stats"].pop("data", None)
        self.benchmarks += entries
        return entries

    def generate(self):
        """Whole models. Cases are given most of the stage's time and drop out by themselves; the rest is for starting
        and writing. Without a transformers that budgetprune knows every case says so."""
        out, seconds = WORK / "bench_generate.json", self.left("generate")
        out.unlink(missing_ok=True)
        stage = self.pytest("generate", ["benchmarks/bench_generate.py", "--benchmark-disable-gc",
                                         f"--benchmark-json={out}"],
                            {"BENCH_GENERATE_SECONDS": f"{max(0.0, 0.85 * seconds - 15):.0f}"}, seconds)
        entries, log = self.take(out), WORK / "generate.log"
        reasons = re.findall(r"^SKIPPED (\[\d+\]) \S+ (.+)$", log.read_text(encoding="utf-8", errors="replace"), re.M)
        stage.found = {"skipped": [f"{count} {reason}" for count, reason in reasons]}
        if stage.status == "passed" and not entries:
            stage.status = "skipped"
        stage.detail += "".join(f"; {line}" for line in stage.found["skipped"])
        print("".join(f"  skipped {line}\n" for line in stage.found["skipped"]), end="", flush=True)
        return stage

    def ncu(self):
        tool = shutil.which("ncu")
        if self.dry or tool is None:
            return Stage("ncu", "skipped", detail="needs a GPU" if self.dry else "ncu is not on PATH")
        log = WORK / "ncu.log"
        command = [tool, "--csv", "--metrics", ",".join(METRICS), "--kernel-name-base", "mangled", "--kernel-name",
                   "regex:budgetprune", "--clock-control", "none", sys.executable, "benchmarks/sanitize_run.py",
                   self.device, "--real"]
        status, seconds = run(command, log, self.left("ncu"), self.environment)
        kernels = achieved(log.read_text(encoding="utf-8", errors="replace"))
        return Stage("ncu", status if kernels else "failed", seconds,
                     f"{len(kernels)} kernels" if kernels else last_line(log), kernels)

    def write(self):
        """The JSON so far, whole or not at all."""
        name = f"{re.sub(r'[^a-z0-9]+', '-', self.facts['gpu'].lower())}-{self.facts['date'][:10]}.json"
        path = (WORK if self.dry else RESULTS) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"facts": self.facts, "datetime": self.facts["date"],
                                         "stages": [asdict(stage) for stage in self.stages],
                                         "benchmarks": self.benchmarks}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path


def facts(dry):
    """Where this runs."""
    import torch

    def said(*command):
        try:
            done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"gpu": f"dry-run-{platform.machine()}" if dry else gpu, "torch": torch.__version__,
            "cuda": torch.version.cuda, "python": platform.python_version(), "dry_run": dry,
            "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "nvcc": (said("nvcc", "--version").splitlines() or [""])[-1],
            "commit": os.environ.get("BUDGETPRUNE_COMMIT") or said("git", "describe", "--always", "--dirty=+",
                                                                    "--exclude=*") or "unknown",
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": "python benchmarks/gpu_check.py" + (" --dry-run" if dry else "")}


def achieved(text):
    """{kernel: {"us": .., "dram %": .., "sm %": ..}} from ncu's CSV, the last launch of each kernel."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    kernels = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))) if start is not None else ():
        if row.get("Metric Name") in METRICS and row.get("Metric Value"):
            value = float(row["Metric Value"].replace(",", ""))
            if row["Metric Name"].startswith("gpu__time"):
                value *= {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3}.get(row.get("Metric Unit"), 1)
            kernels.setdefault(row["Kernel Name"], {})[METRICS[row["Metric Name"]]] = round(value, 2)
    return kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="the same on the CPU, as a rehearsal")
    parser.add_argument("--minutes", type=float, default=9, help="for all stages together (default 9)")
    parser.add_argument("--stages", default=",".join(SHARE), help=f"some of {','.join(SHARE)}")
    parser.add_argument("--copy-to", type=Path, help="a folder to put the JSON, the table and the logs into as well")
    options = parser.parse_args()
    options.stages = options.stages.split(",")
    if unknown := sorted(set(options.stages) - set(SHARE)):
        parser.error(f"--stages must be some of {', '.join(SHARE)}, got {', '.join(unknown)}")
    if options.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {options.minutes}")
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run rehearses on the CPU")
    WORK.mkdir(parents=True, exist_ok=True)
    check = Check(options)
    try:
        for name in SHARE:
            if name not in options.stages:
                continue
            print(f"{name} ... (at most {check.left(name):.0f} s)", flush=True)
            check.stages.append(getattr(check, name)())
            path = check.write()
    except KeyboardInterrupt:
        path = check.write()
        print("interrupted; what was found so far is kept")
    if not options.dry_run:
        subprocess.run([sys.executable, "benchmarks/table.py"], cwd=ROOT, check=False)
    if options.copy_to:
        options.copy_to.mkdir(parents=True, exist_ok=True)
        for file in (path, ROOT / "benchmarks" / "README.md", *WORK.glob("*.log")):
            if file.exists():
                shutil.copy(file, options.copy_to)
    print(f"\n{path}")
    for stage in check.stages:
        print(f"{stage.name:10} {stage.status:10} {stage.seconds:6.1f} s  {stage.detail[:160]}")
    return int(any(stage.status in ("failed", "timed out") for stage in check.stages))


if __name__ == "__main__":
    sys.exit(main())
