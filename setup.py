"""Builds budgetprune._C: every csrc/*.cpp, and every csrc/*.cu where nvcc is found.

BUDGETPRUNE_BUILD=0      no extension at all; the plain-torch references serve
BUDGETPRUNE_CUDA=0|1|auto  auto (default): compile CUDA if nvcc is there, whether or not a GPU is
TORCH_CUDA_ARCH_LIST     for example "8.0;9.0;10.0"; default: those of 8.0 9.0 10.0 12.0 that nvcc knows
"""

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10, see csrc/torch_support.h


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in ([f"{home}/bin/nvcc"] if home else []) + ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        if found := shutil.which(candidate):
            return found
    return None


def cuda_root(nvcc):
    """The toolkit that nvcc itself uses: its dry run names it, also where nvcc is a wrapper script."""
    lines = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr.splitlines()
    top = next((line.split("TOP=", 1)[1].strip() for line in lines if "TOP=" in line), None)
    return Path(top) if top else Path(nvcc).resolve().parents[1]


def cuda_archs(nvcc):
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace("+PTX", "").replace(".", "").replace(";", " ").split()
    for name in asked:
        if not name.rstrip("af").isdecimal():
            sys.exit(f'TORCH_CUDA_ARCH_LIST must hold numbers such as "8.0;9.0", got {name!r}')
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return asked or [arch for arch in ("80", "90", "100", "120") if f"compute_{arch}" in known.split()]


def compile_cuda(nvcc, archs, out):
    out.mkdir(parents=True, exist_ok=True)
    gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    gencode.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")

    def one(source):
        target = out / f"{source.stem}_cu.o"
        newest = max(p.stat().st_mtime for p in [*CSRC.glob("*.cuh"), *CSRC.glob("*.h"), source])
        if not target.exists() or target.stat().st_mtime < newest:
            command = [nvcc, "-O3", "-std=c++17", *gencode, "-Xcompiler", "-fPIC", "-cudart", "static",
                       "-c", str(source), "-o", str(target)]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sorted(CSRC.glob("*.cu"))))


def extension():
    import pybind11
    from torch.utils.cpp_extension import CppExtension

    mode = os.environ.get("BUDGETPRUNE_CUDA", "auto")
    if mode not in ("0", "1", "auto"):
        sys.exit(f"BUDGETPRUNE_CUDA must be 0, 1 or auto, got {mode!r}")
    nvcc = None if mode == "0" else find_nvcc()
    if mode == "1" and nvcc is None:
        sys.exit("BUDGETPRUNE_CUDA=1, but nvcc is not on PATH nor under CUDA_HOME")
    flags, objects, links = ["-O3", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", STABLE_ABI], [], []
    if nvcc:
        archs = cuda_archs(nvcc)
        version = subprocess.run([nvcc, "--version"], capture_output=True).stdout
        objects = compile_cuda(nvcc, archs, ROOT / "build" / "_".join(["cuda", *archs, f"{crc32(version):08x}"]))
        root = cuda_root(nvcc)
        lib = next((p for p in (root / "lib64", root / "lib") if (p / "libcudart_static.a").exists()), root / "lib64")
        links = [f"-L{lib}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        flags += ["-DBUDGETPRUNE_CUDA", f'-DBUDGETPRUNE_CUDA_ARCHS="{" ".join(archs)}"', f'-DBUDGETPRUNE_NVCC="{nvcc}"']
    sources = [str(p.relative_to(ROOT)) for p in sorted(CSRC.glob("*.cpp"))]
    return CppExtension("budgetprune._C", sources, include_dirs=[pybind11.get_include()],
                        extra_compile_args={"cxx": flags}, extra_objects=objects, extra_link_args=links,
                        depends=[str(p) for p in CSRC.glob("*.*h")])


def build():
    compiler = shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0])
    if os.environ.get("BUDGETPRUNE_BUILD", "1") == "0" or not compiler:
        print("budgetprune: no extension is built; the plain-torch references serve", flush=True)
        return {}
    if not {"egg_info", "sdist", "dist_info"}.isdisjoint(sys.argv):
        return {}  # metadata only: neither torch nor a compiler is needed
    from torch.utils.cpp_extension import BuildExtension

    return {"ext_modules": [extension()], "cmdclass": {"build_ext": BuildExtension}}


# csrc is a package too: CuPy compiles its headers where nvcc did not (budgetprune/ops/_nvrtc).
setup(packages=[*find_packages(include=["budgetprune", "budgetprune.*"]), "budgetprune.csrc"],
      package_dir={"budgetprune.csrc": "csrc"}, **build())
