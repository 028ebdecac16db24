"""What is active on this machine, why, and what to do about what is not."""

import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

FLOORS = {"torch": "2.11", "transformers": "5.23", "peft": "0.17", "accelerate": "1.0"}

REINSTALL = "pip install 'setuptools>=77' wheel ninja 'pybind11>=2.13', then pip install --no-build-isolation ."
BUILD_ADVICE = f"install the CUDA toolkit and reinstall: {REINSTALL}"


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do, empty where all is well."""

    what: str
    well: bool
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at packages, compiled kernels, GPU, compilers and the demo's model."""
    return [*_packages(), *_kernels(), *_cuda_kernels(), *_gpu(), _compiler("g++", "kernels for the CPU"),
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
                      f"install g++ and reinstall: {REINSTALL}")
        return
    yield Finding("compiled kernels", True, f"C++ by g++ {FACTS['compiler']}, "
                  f"stable ABI from torch {FACTS['stable_abi_target']}")


def _cuda_kernels():
    """Which kernels serve CUDA tensors, what is missing, and for CuPy what the first uses took."""
    import torch

    from .ops import _nvrtc
    from .ops._native import ASKED, CUDA_KERNELS, FACTS, HAS_CUDA_KERNELS

    what, archs = "CUDA kernels", FACTS["cuda_archs"].split() if HAS_CUDA_KERNELS else []
    asked = "" if ASKED == "auto" else f" (BUDGETPRUNE_CUDA_KERNELS={ASKED})"
    if CUDA_KERNELS == "nvcc":
        if HAS_CUDA_KERNELS:
            yield Finding(what, True, f"in the binary, for sm_{', sm_'.join(archs)}{asked}")
        else:
            yield Finding(what, False, f"none in the binary{asked}: CUDA tensors raise an error", BUILD_ADVICE)
    elif CUDA_KERNELS == "reference":
        yield Finding(what, False, f"plain-torch references serve{asked or ' (BUDGETPRUNE_REFERENCE=1)'}",
                      "unset the variable to have kernels")
    elif ASKED == "auto" and not torch.cuda.is_available():
        yield Finding(what, True, "not in the binary; without a GPU nothing is missing")
    elif trouble := _nvrtc.problem():
        serve = "CUDA tensors raise an error" if ASKED == "cupy" else "plain-torch references serve"
        yield Finding(what, False, f"not in the binary, and {trouble}: {serve}{asked}",
                      f"{_nvrtc.INSTALL}; or {BUILD_ADVICE}")
    else:
        yield Finding(what, True, f"CuPy {_nvrtc.version()} compiles them at their first use{asked}")
        if (folder := _nvrtc.headers.half_headers()) is None:
            yield Finding("half kernels", False, "float16 and bfloat16 are served by the references: cuda_fp16.h and "
                          "cuda_bf16.h are not found", _nvrtc.headers.ADVICE)
        else:
            yield Finding("half kernels", True, f"float16 and bfloat16, headers in {folder}")
        yield _kernel_cache()


def _kernel_cache():
    from .ops._nvrtc.compile import cache_folder, records

    folder, found = cache_folder(), records()
    if not found:
        return Finding("kernel cache", True, f"{folder}, empty: each kernel is compiled at its first use")
    slowest = max(found, key=lambda record: record.seconds)
    return Finding("kernel cache", True, f"{folder}: {len(found)} kernels, {sum(r.bytes for r in found) / 1e6:.1f} MB; "
                   f"their first uses took {sum(r.seconds for r in found):.1f} s to compile, the longest "
                   f"{slowest.seconds:.2f} s ({slowest.kernel.removeprefix('budgetprune::')})")


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
