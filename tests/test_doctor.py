"""The doctor says what is active, why, and what to do."""

import json
import os
import subprocess
import sys

import pytest

from budgetprune import doctor


def by_name():
    return {finding.what: finding for finding in doctor.examine()}


def test_every_trouble_comes_with_advice():
    findings = doctor.examine()
    assert {"torch", "transformers", "compiled kernels", "GPU", "nvcc", "demo model"} <= {f.what for f in findings}
    assert all(finding.advice for finding in findings if not finding.well)


def test_an_old_package_is_named_with_the_way_out(monkeypatch):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "5.9.1" if name == "transformers" else real(name))
    finding = by_name()["transformers"]
    assert not finding.well and finding.found == "5.9.1" and "pip install -U 'transformers>=5.23'" in finding.advice


def test_a_missing_package_is_named(monkeypatch):
    real = doctor.version

    def version(name):
        if name == "peft":
            raise doctor.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    assert by_name()["peft"].found == "missing"


def test_without_a_binary_the_references_serve_and_the_doctor_says_why():
    code = ("from budgetprune.doctor import examine; f = {x.what: x for x in examine()}['compiled kernels'];"
            "print(f.well, f.found, f.advice)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env={**os.environ, "BUDGETPRUNE_REFERENCE": "1"})
    assert "False plain-torch references serve: BUDGETPRUNE_REFERENCE=1" in result.stdout
    assert "reinstall" in result.stdout


def test_a_driver_without_a_cuda_torch_is_found(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch uses the GPU here")
    assert not by_name()["GPU"].well and "install a CUDA build of torch" in by_name()["GPU"].advice


def cuda_findings(monkeypatch, asked="auto", kernels="cupy", problem=None, gpu=True, archs=""):
    import torch

    from budgetprune.ops import _native, _nvrtc

    monkeypatch.setattr(_native, "FACTS", {"cuda_archs": archs})
    monkeypatch.setattr(_native, "HAS_CUDA_KERNELS", bool(archs))
    monkeypatch.setattr(_native, "ASKED", asked)
    monkeypatch.setattr(_native, "CUDA_KERNELS", kernels)
    monkeypatch.setattr(_nvrtc, "problem", lambda: problem)
    monkeypatch.setattr(_nvrtc, "version", lambda: "14.2.0 (NVRTC 13.0)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    return {finding.what: finding for finding in doctor._cuda_kernels()}


@pytest.mark.parametrize("options, well, words, advice", [
    ({"kernels": "nvcc", "archs": "80 90"}, True, "in the binary, for sm_80, sm_90", ""),
    ({"kernels": "nvcc", "asked": "nvcc"}, False, "none in the binary", "install the CUDA toolkit and reinstall"),
    ({"gpu": False}, True, "without a GPU nothing is missing", ""),
    ({"problem": "CuPy is not installed"}, False, "plain-torch references serve", "no-build-isolation '.[cuda]'"),
    ({"problem": "CuPy is not installed", "asked": "cupy"}, False, "CUDA tensors raise an error", "[cuda12]"),
    ({}, True, "CuPy 14.2.0 (NVRTC 13.0) compiles them at their first use", ""),
    ({"kernels": "reference", "asked": "reference"}, False, "plain-torch references serve", "unset the variable"),
])
def test_the_doctor_says_which_kernels_serve_cuda_tensors(monkeypatch, options, well, words, advice):
    finding = cuda_findings(monkeypatch, **options)["CUDA kernels"]
    assert finding.well == well and words in finding.found and advice in finding.advice
    assert bool(finding.advice) != well


def test_the_doctor_says_where_compiled_kernels_lie_and_what_their_first_use_took(monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETPRUNE_CACHE", str(tmp_path))
    empty = cuda_findings(monkeypatch)["kernel cache"]
    assert empty.well and str(tmp_path) in empty.found and "empty" in empty.found
    (tmp_path / "kernels").mkdir()
    for at, (name, seconds) in enumerate((("fast<float>", 0.25), ("slow<float, 8>", 1.5))):
        (tmp_path / "kernels" / f"{at}.json").write_text(json.dumps(
            {"kernel": f"budgetprune::{name}", "source": "a.cuh", "target": "sm_90", "symbol": "s", "seconds": seconds,
             "nvrtc": "13.0", "bytes": 500000, "sha256": ""}))
    (tmp_path / "kernels" / "torn.json").write_text("{")
    found = cuda_findings(monkeypatch)["kernel cache"].found
    assert "2 kernels, 1.0 MB" in found and "1.8 s to compile, the longest 1.50 s (slow<float, 8>)" in found


def test_the_doctor_misses_the_half_headers(monkeypatch):
    from budgetprune.ops._nvrtc import headers

    monkeypatch.setattr(headers, "half_headers", lambda: None)
    finding = cuda_findings(monkeypatch)["half kernels"]
    assert not finding.well and "cuda_fp16.h" in finding.found and "pip install nvidia-cuda-runtime" in finding.advice
