"""The kernels' bodies on real threads, under ThreadSanitizer, AddressSanitizer and UBSan. Needs no GPU and no torch."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CXX = os.environ.get("CXX", "g++")
MISSING = [tool for tool in ("cmake", "ctest", CXX) if shutil.which(tool) is None]


def run(*command):
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def sanitizers_link(folder):
    """Some compilers come without the sanitizers' libraries; then there is nothing to run."""
    (folder / "empty.cpp").write_text("int main() {}\n")
    link = [[CXX, f"-fsanitize={kind}", "empty.cpp", "-o", "empty"] for kind in ("thread", "address,undefined")]
    return all(subprocess.run(c, cwd=folder, check=False, capture_output=True).returncode == 0 for c in link)


@pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")
def test_bodies_run_on_real_threads_without_a_race_or_a_memory_error(tmp_path):
    if not sanitizers_link(tmp_path):
        pytest.skip(f"{CXX} has no sanitizer libraries")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", ROOT, "-B", tmp_path / "build", *generator, "-DBUDGETPRUNE_CUDA=OFF",
        f"-DCMAKE_CXX_COMPILER={CXX}")
    run("cmake", "--build", tmp_path / "build", "--parallel", str(os.cpu_count()))
    report = run("ctest", "--test-dir", tmp_path / "build", "--output-on-failure", "--parallel", str(os.cpu_count()))
    for name in sorted(path.stem for path in (ROOT / "tests" / "cpp").glob("test_*.cpp")):
        assert f"{name}_thread" in report and f"{name}_address_undefined" in report
