"""The doctor says what is active, why, and what to do."""

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
