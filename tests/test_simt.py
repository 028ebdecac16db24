"""The tests of the ops again, with the CUDA kernels run by the emulator of tests/simt. Needs no GPU."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
CXX = os.environ.get("CXX", "g++")

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="its fibers are written for x86-64"),
    pytest.mark.skipif(shutil.which(CXX) is None, reason=f"{CXX} is not on PATH"),
]


@pytest.fixture(scope="module")
def emulated():
    done = subprocess.run([sys.executable, str(HERE / "simt" / "build.py"), str(ROOT / "build" / "simt")],
                          check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


# Left out: what only the CPU checks, compilation, which sees schemas and no kernels, and launches from Python.
@pytest.mark.timeout(900)
def test_cuda_kernels_pass_the_tests_of_the_ops_in_the_emulator(emulated):
    environment = dict(os.environ, BUDGETPRUNE_EMULATED=emulated, OMP_NUM_THREADS="1")
    files = [str(path) for path in sorted((HERE / "ops").glob("test_*.py"))
             if not path.name.startswith(("test_cuda_", "test_cupy_", "test_native"))]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not cpu_values and not cuda", "-k",
               "not compil and not opcheck and not inductor and not thread and not vmap and not gradcheck"]
    halves = [subprocess.Popen([*command, *files[start::2]], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True) for start in (0, 1)]
    for half in halves:
        said, _ = half.communicate()
        assert half.returncode == 0, said[-6000:]
        assert " passed" in said


def test_the_emulator_reports_a_barrier_that_some_threads_never_reach(tmp_path):
    run_kernel(tmp_path, "if (threadIdx.x < 40) __syncthreads(); else if (threadIdx.x == 63) __syncwarp();",
               "simt: deadlock")


def test_the_emulator_reports_lanes_that_meet_in_different_collectives(tmp_path):
    run_kernel(tmp_path, "if (threadIdx.x % 2) __syncwarp(); else __ballot_sync(0xffffffffu, 1);",
               "simt: lanes of a warp met in different collectives")


def test_an_emulated_asynchronous_copy_arrives_at_its_wait_and_not_before(tmp_path):
    run_kernel(tmp_path, """
        BP_DYNAMIC_SHARED(bytes);
        alignas(16) static float four[4] = {1, 2, 3, 4};
        budgetprune::copy_async_16(bytes, four, true);
        budgetprune::copy_async_commit();
        const float early = reinterpret_cast<float*>(bytes)[3];
        budgetprune::copy_async_wait<0>();
        if (threadIdx.x == 0) std::printf("%d %g", early != early, reinterpret_cast<float*>(bytes)[3]);""", "1 4", 1)


def run_kernel(folder, body, expected, threads=64):
    """Compiles a kernel with this body, runs one block of it, and asks for `expected` in what it prints."""
    source = folder / "kernel.cpp"
    source.write_text('#include "cuda_emulated.h"\n#include "ptx.cuh"\n'
                      f"__global__ void kernel() {{ {body} }}\n"
                      f"int main() {{ budgetprune::launch(kernel, 1, {threads}, 64, nullptr); }}\n")
    includes = [f"-I{ROOT / 'csrc'}", f"-I{HERE / 'simt'}"]
    subprocess.run([CXX, "-std=c++17", "-O1", "-w", "-DBUDGETPRUNE_EMULATED", *includes, str(source), "-o",
                    str(folder / "kernel")], check=True)
    done = subprocess.run([str(folder / "kernel")], check=False, capture_output=True, text=True)
    assert expected in done.stdout + done.stderr
