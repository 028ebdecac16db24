"""The CUDA kernels without nvcc: CuPy's NVRTC compiles the same csrc/*.cuh at their first use.

One file per op holds what its .cpp and .cu decide: checks, allocation, grid, block, shared memory. CuPy is imported
when the first CUDA tensor arrives. Launches go to torch's current stream and neither wait nor allocate outside torch,
so that CUDA graphs capture them once their kernels are loaded.
"""

import importlib
import importlib.util
import warnings
from functools import lru_cache

from . import headers

INSTALL = "pip install --no-build-isolation '.[cuda]' (cupy-cuda13x), or '.[cuda12]' for a torch built with CUDA 12"


@lru_cache(None)
def problem():
    """Why CuPy cannot compile kernels here; None where it can."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except ImportError as error:
        return f"CuPy is not installed ({error})" if importlib.util.find_spec("cupy") is None else f"CuPy: {error}"
    except Exception as error:  # NVRTC's library is missing, or is of another major version
        return f"CuPy finds no NVRTC: {error}"
    return None


def version():
    """CuPy's version and that of its NVRTC."""
    import cupy
    from cupy.cuda import nvrtc

    return f"{cupy.__version__} (NVRTC {'.'.join(map(str, nvrtc.getVersion()))})"


def launcher(name, reference):
    """The function that launches op `name` through CuPy, or None: `reference` lives in ops/X.py, it in _nvrtc/X.py."""
    stem = reference.__module__.rsplit(".", 1)[-1]
    if importlib.util.find_spec(f"{__name__}.{stem}") is None:
        return None
    return getattr(importlib.import_module(f"{__name__}.{stem}"), name, None)


def implementation(name, reference, strict):
    """What serves op `name` for CUDA tensors. strict: RuntimeError where CuPy cannot; else the reference serves."""
    if trouble := problem():
        if strict:
            raise RuntimeError(f"BUDGETPRUNE_CUDA_KERNELS=cupy, but {trouble}: {INSTALL}")
        return reference
    launch = launcher(name, reference)
    if launch is None:
        return reference

    def serve(*arguments):
        try:
            return launch(*arguments)
        except headers.HalvesUnavailable as error:
            if strict:
                raise
            warnings.warn(f"{error}; the plain-torch reference serves {name}", stacklevel=2)
            return reference(*arguments)

    return serve
