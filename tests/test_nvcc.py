"""Every .cu compiles with nvcc, no warning let through and no register spilled.

Needs no GPU. `python tests/test_nvcc.py` prints registers and shared memory of every kernel;
BUDGETPRUNE_TEST_ARCHS="80 90 100" asks for several generations.
"""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launched_kernels import KERNELS, readable, resources, table, written

from budgetprune.ops._nvrtc.source import csrc, flatten

NVCC = shutil.which("nvcc") or shutil.which(f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc")
KEPT = Path(__file__).parents[1] / "build" / "nvcc"
# One generation takes a minute on two cores; tests/test_nvrtc.py compiles for the others too.
ARCHS = tuple(int(arch) for arch in os.environ.get("BUDGETPRUNE_TEST_ARCHS", "90").split())

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor under CUDA_HOME")


def said_of(source):
    """What nvcc and ptxas say of a .cu, in words; kept in build/nvcc for as long as nothing that goes in changes."""
    gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command = [NVCC, "-std=c++17", "-O3", f"--threads={len(ARCHS)}", *gencode, "-Werror", "all-warnings", "-Xptxas",
               "-v", "-c", str(source), "-o", os.devnull]
    version = subprocess.run([NVCC, "--version"], check=True, capture_output=True, text=True).stdout
    made_of = "\0".join([flatten(source.name), version, *command])
    kept = KEPT / f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.log"
    if not kept.exists():
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{source.name}:\n{done.stderr}"
        KEPT.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stderr)
    return kept.read_text()


def all_resources():
    """What ptxas says of every kernel; the largest source first, so that none is waited for alone."""
    sources = sorted(csrc().glob("*.cu"), key=lambda path: -path.stat().st_size)
    assert {"select_topk.cu", "gumbel_topk.cu"} <= {source.name for source in sources}
    with ThreadPoolExecutor(2) as pool:
        return [row for said in pool.map(said_of, sources) for row in resources(said)]


@pytest.fixture(scope="module")
def rows():
    found = all_resources()
    print(f"\n{table(found)}")
    return found


@pytest.mark.timeout(600)
def test_every_cuda_source_compiles_without_a_warning(rows):
    for arch in ARCHS:
        assert len([row for row in rows if row[1] == f"sm_{arch}"]) * len(ARCHS) == len(rows)


def test_no_kernel_spills_registers(rows):
    assert [row for row in rows if row[4]] == []


def test_no_kernel_holds_more_static_shared_memory_than_any_gpu_grants(rows):
    assert max(shared for *_, shared, _ in rows) <= 48 * 1024


def test_cupy_launches_exactly_the_instantiations_that_nvcc_builds(rows):
    names = {kernel.name for kernel in KERNELS}
    built = {readable(name) for name, *_ in rows}
    assert {name for name in built if name.split("<")[0] in names} == {
        written(kernel, variant) for kernel in KERNELS for variant in kernel.variants}


if __name__ == "__main__":
    print(table(all_resources()))
