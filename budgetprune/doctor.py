"""What is active on this machine, why, and what to do about what is not."""

import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

FLOORS = {"torch": "2.11", "transformers": "5.23", "peft": "0.17", "accelerate": "1.0"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do, empty where all is well."""

    what: str
    well: bool
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at packages, compiled kernels, GPU, compilers and the demo's model."""
    return [*_packages(), *_kernels(), *_gpu(), _compiler("g++", "kernels for the CPU"),
            _compiler("nvcc", "kernels for the GPU"), _base()]


def _packages():
    for name, floor in FLOORS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, False, "missing", f"pip install '{name}>={floor}'")
            continue
        enough = _numbers(found) >= _numbers(floor)
        advice = "" if enough else f"{floor} or newer is needed: pip install -U '{name}>={floor}'"
        yield Finding(name, enough, found, advice)


def _numbers(text):
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _kernels():
    from .ops._native import FACTS, PROBLEM

    if FACTS is None:
        yield Finding("compiled kernels", False, f"plain-torch references serve: {PROBLEM}",
                      "install g++ and reinstall: pip install --no-build-isolation .")
        return
    yield Finding("compiled kernels", True, f"C++ by g++ {FACTS['compiler']}, "
                  f"stable ABI from torch {FACTS['stable_abi_target']}")
    archs = FACTS["cuda_archs"]
    if archs:
        yield Finding("CUDA kernels", True, "in the binary, for sm_" + ", sm_".join(archs.split()))
    else:
        yield Finding("CUDA kernels", False, "not in the binary: built without nvcc, or with BUDGETPRUNE_CUDA=0",
                      "for a GPU, install the CUDA toolkit and reinstall; without a GPU nothing is missing")


def _gpu():
    import torch

    if torch.cuda.is_available():
        yield Finding("GPU", True, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    elif shutil.which("nvidia-smi"):
        yield Finding("GPU", False, f"an NVIDIA driver is here, but torch {torch.__version__} does not use it",
                      "install a CUDA build of torch, then reinstall budgetprune")
    else:
        yield Finding("GPU", True, f"none here; the CPU serves, {torch.get_num_threads()} threads")


def _compiler(name, what):
    path = shutil.which(name)
    return Finding(name, True, path or f"not found; {what} cannot be built here (what is built already runs)")


def _base():
    from .training.base_model import find_base

    try:
        place, kind = find_base()
    except FileNotFoundError as error:
        return Finding("demo model", False, str(error), "make it: budgetprune train-base")
    return Finding("demo model", True, f"{kind}, {place}")
