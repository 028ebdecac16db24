"""Where CUDA's half headers are. NVRTC brings none; torch's CUDA wheels do, and so does the toolkit."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

HALVES = ("cuda_fp16.h", "cuda_bf16.h")
ADVICE = "pip install nvidia-cuda-runtime, or set CUDA_HOME to a CUDA toolkit"


class HalvesUnavailable(RuntimeError):
    """A kernel for float16 or bfloat16 was asked for, and its headers are not here."""

    def __init__(self):
        super().__init__(f"kernels for float16 and bfloat16 need {' and '.join(HALVES)}, which are not found: {ADVICE}")


def _folders():
    try:
        from cuda import pathfinder
    except ImportError:
        pathfinder = None
    if find := getattr(pathfinder, "find_nvidia_header_directory", None):
        yield find("cudart")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield os.path.join(home, "include")
    try:
        import cupy

        if root := cupy.cuda.get_cuda_path():
            yield os.path.join(root, "include")
    except ImportError:
        pass
    yield "/usr/local/cuda/include"


@lru_cache(None)
def half_headers():
    """The folder of cuda_fp16.h and cuda_bf16.h, or None."""
    for folder in _folders():
        if folder and all((Path(folder) / name).is_file() for name in HALVES):
            return Path(folder)
    return None


@lru_cache(None)
def fingerprint():
    """Changes when the half headers change."""
    folder = half_headers()
    digest = hashlib.sha256()
    for name in HALVES if folder else ():
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
