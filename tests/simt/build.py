"""Builds budgetprune._C with its CUDA kernels run by an emulator, on CPU tensors: python tests/simt/build.py FOLDER.

Every csrc/*.cu is compiled by g++ with cuda_emulated.h in front of it, and every csrc/*.cpp as it is, save that the
implementations meant for CUDA are registered for the CPU. What is up to date is not compiled again.
"""

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"


def commands(folder):
    """[(object file, the command that makes it)]."""
    import pybind11
    from torch.utils.cpp_extension import include_paths

    flags = ["-O2", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w", "-DBUDGETPRUNE_CUDA",
             "-DBUDGETPRUNE_EMULATED", '-DBUDGETPRUNE_CUDA_ARCHS="emulated"',
             "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_EXTENSION_NAME=_C", f"-I{CSRC}"]
    includes = [pybind11.get_include(), sysconfig.get_path("include"), *include_paths()]
    compiler = os.environ.get("CXX", "g++")
    for source in sorted(CSRC.glob("*.cpp")):
        target = folder / f"{source.stem}_cpp.o"
        yield target, [compiler, "-std=c++20", *flags, *(f"-isystem{i}" for i in includes), "-c", source, "-o", target]
    for source in sorted(CSRC.glob("*.cu")):
        target = folder / f"{source.stem}_cu.o"
        yield target, [compiler, "-std=c++17", *flags, f"-I{HERE}", f"-I{HERE / 'include'}", "-include",
                       HERE / "cuda_emulated.h", "-x", "c++", "-c", source, "-o", target]


def build(folder):
    """The path of the module, built."""
    from torch.utils.cpp_extension import library_paths

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*CSRC.glob("*.*h"), *HERE.rglob("*.h"), HERE / "build.py"]
    newest = max(path.stat().st_mtime for path in headers)
    jobs = list(commands(folder))

    def compile_one(job):
        target, command = job
        source = command[-3]
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{source.name}:\n{done.stderr[-8000:]}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    module = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    paths = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    temporary = module.with_suffix(".tmp")
    subprocess.run([os.environ.get("CXX", "g++"), "-shared", *(str(target) for target, _ in jobs), "-o", str(temporary),
                    *paths, "-ltorch_cpu", "-lc10", "-ldl", "-lpthread"], check=True)
    return temporary.rename(module)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(build(sys.argv[1]))
