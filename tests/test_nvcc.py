"""Every .cu compiles with nvcc, no warning let through, for three generations of GPUs. Needs no GPU."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which(f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor under CUDA_HOME")


def compile_one(source, folder):
    gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90, 100)]
    # -O1 for speed: it is the front end and the assembler that are asked; setup.py compiles with -O3.
    command = [NVCC, "-std=c++17", "-O1", "-Xptxas=-O1", "--threads=2", *gencode, "-Werror", "all-warnings",
               "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_every_cuda_source_compiles_for_sm_80_90_and_100_without_a_warning(tmp_path):
    sources = sorted(CSRC.glob("*.cu"))
    assert {"select_topk.cu", "gumbel_topk.cu"} <= {source.name for source in sources}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda source: compile_one(source, tmp_path), sources))
    failed = {source.name: done.stderr for source, done in zip(sources, results) if done.returncode or done.stderr}
    assert not failed, failed
