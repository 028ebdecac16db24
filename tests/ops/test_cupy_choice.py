"""Which kernels serve CUDA tensors: those of the binary, CuPy's or the references, as found or as asked for."""

import os
import subprocess
import sys

import pytest
import torch

from budgetprune.ops import _native, _nvrtc
from budgetprune.ops.select_topk import select_topk_reference

WITH, WITHOUT = {"cuda_archs": "80 90"}, {"cuda_archs": ""}
SCORES = torch.tensor([[1.0, 3.0, 2.0]])


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


@pytest.mark.parametrize("asked, facts, chosen", [
    ("auto", WITH, "nvcc"), ("auto", WITHOUT, "cupy"), ("auto", None, "cupy"),
    ("cupy", WITH, "cupy"), ("nvcc", WITHOUT, "nvcc"), ("reference", WITH, "reference"),
])
def test_kernels_are_chosen_by_the_variable_and_the_binary(monkeypatch, asked, facts, chosen):
    monkeypatch.delenv("BUDGETPRUNE_REFERENCE", raising=False)
    monkeypatch.setenv("BUDGETPRUNE_CUDA_KERNELS", asked)
    assert _native._choose(facts) == (asked, chosen)


def test_references_asked_for_everywhere_serve_cuda_tensors_too(monkeypatch):
    monkeypatch.setenv("BUDGETPRUNE_REFERENCE", "1")
    assert _native._choose(None)[1] == "reference"


def test_an_unknown_choice_is_an_error_at_import():
    done = python("import budgetprune.ops", BUDGETPRUNE_CUDA_KERNELS="cuda")
    assert done.returncode and "must be one of auto, nvcc, cupy, reference, got 'cuda'" in done.stderr


@pytest.mark.parametrize("asked", ["auto", "nvcc", "cupy", "reference"])
def test_importing_the_ops_neither_loads_cupy_nor_warns(asked):
    done = python("import sys, budgetprune.ops\n"
                  "assert not {'cupy', 'budgetprune.ops._nvrtc'} & set(sys.modules)", BUDGETPRUNE_CUDA_KERNELS=asked,
                  PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.fixture
def on_cuda(monkeypatch):
    """What would take CUDA tensors, by what is asked for; the reference is that of select_topk."""
    def made(asked, kernels, problem):
        monkeypatch.setattr(_native, "ASKED", asked)
        monkeypatch.setattr(_native, "CUDA_KERNELS", kernels)
        monkeypatch.setattr(_nvrtc, "problem", lambda: problem)
        return _native._on_cuda("select_topk", select_topk_reference)

    return made


def test_without_cupy_the_reference_serves(on_cuda):
    assert on_cuda("auto", "cupy", "CuPy is not installed")(SCORES, None, 2).tolist() == [[1, 2]]


def test_cupy_asked_for_and_not_there_says_what_to_install(on_cuda):
    with pytest.raises(RuntimeError, match=r"CuPy is not installed: pip install --no-build-isolation '.\[cuda\]'"):
        on_cuda("cupy", "cupy", "CuPy is not installed")(SCORES, None, 2)


def test_nvcc_asked_for_and_not_in_the_binary_is_an_error(on_cuda):
    with pytest.raises(RuntimeError, match="the binary has no CUDA kernels: install the CUDA toolkit"):
        on_cuda("nvcc", "nvcc", None)(SCORES, None, 2)


def test_references_asked_for_serve_although_cupy_could(on_cuda):
    assert on_cuda("reference", "reference", None)(SCORES, None, 2).tolist() == [[1, 2]]


def test_with_cupy_its_launcher_serves(on_cuda, monkeypatch):
    from budgetprune.ops._nvrtc import select_topk

    monkeypatch.setattr(select_topk, "select_topk", lambda *arguments: ("launched", arguments))
    assert on_cuda("auto", "cupy", None)(SCORES, None, 2) == ("launched", (SCORES, None, 2))


def test_an_op_without_a_launcher_is_served_by_its_reference():
    def new_op_reference(x):
        return x + 1

    new_op_reference.__module__ = "budgetprune.ops.new_op"
    assert _nvrtc.implementation("new_op", new_op_reference, strict=False)(1) == 2


def test_a_problem_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    assert "CuPy" in _nvrtc.problem.__wrapped__()


CONTRACT = """
import torch
from budgetprune.ops import _native, select_topk
if not torch.cuda.is_available():
    raise SystemExit(77)
scores = torch.randn(64, 577, device="cuda")
assert torch.equal(select_topk(scores, 64).cpu(), select_topk(scores.cpu(), 64))
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    for _ in range(3):
        select_topk(scores, 64)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    kept = select_topk(scores, 64)
scores.neg_()
graph.replay()
assert torch.equal(kept.cpu(), select_topk(scores.cpu(), 64))
assert _native.CUDA_KERNELS == "cupy"
from budgetprune.ops._nvrtc import kernel
assert kernel._launchers
"""


@pytest.mark.cuda
def test_on_a_gpu_cupy_kernels_agree_with_the_cpu_and_are_captured_in_a_graph(tmp_path):
    pytest.importorskip("cupy", reason="pip install --no-build-isolation '.[cuda]'")
    done = python(CONTRACT, BUDGETPRUNE_CUDA_KERNELS="cupy", BUDGETPRUNE_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
