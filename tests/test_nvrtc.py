"""Every kernel that is launched through CuPy compiles at run time, by NVRTC, without a GPU and without nvcc."""

import json
import os
import stat
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from launched_kernels import KERNELS, declared, readable, resources, table

from budgetprune.ops._nvrtc import compile as compiler
from budgetprune.ops._nvrtc import headers
from budgetprune.ops._nvrtc.kernel import HALVES
from budgetprune.ops._nvrtc.source import csrc, flatten

pytest.importorskip("cuda.bindings.nvrtc", reason="pip install nvidia-cuda-nvrtc cuda-bindings")
import nvrtc_bindings as nvrtc

needs_halves = pytest.mark.skipif(headers.half_headers() is None, reason=headers.ADVICE)
SELECT = ("select_topk.cuh", "budgetprune::select_topk_kernel<float>", (9, 0))


def instantiations(arch):
    """{source: [expression]}: for sm_90 all of them, elsewhere one element type for each."""
    found = defaultdict(list)
    for kernel in KERNELS:
        seen = set()
        for variant in kernel.variants:
            if not set(HALVES).isdisjoint(variant) and headers.half_headers() is None:
                continue
            if arch == 90 or variant[1:] not in seen:
                found[kernel.source].append(kernel.expression(variant))
            seen.add(variant[1:])
    return found


def compiled(source, expressions, arch):
    """Machine code that has these kernels, and what ptxas says of them."""
    text, options = compiler.text_of(source)
    program = nvrtc.createProgram(text, "flat.cu", (), ())
    for expression in expressions:
        nvrtc.addNameExpression(program, expression)
    try:
        nvrtc.compileProgram(program, [*options, f"-arch=sm_{arch}", "--ptxas-options=-v"])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    code, log = nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    lowered = [nvrtc.getLoweredName(program, expression) for expression in expressions]
    nvrtc.destroyProgram(program)
    assert code[:4] == b"\x7fELF" and all(name.encode() in code for name in lowered)
    return resources(log)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_launched_kernel_compiles_by_nvrtc_and_spills_nothing(arch):
    jobs = sorted(instantiations(arch).items(), key=lambda job: -len(job[1]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = [row for found in pool.map(lambda job: compiled(*job, arch), jobs) for row in found]
    print(f"\n{table(rows)}")
    assert len(rows) >= sum(len(expressions) for _, expressions in jobs)
    assert {(readable(name), arch): spilled for name, arch, _, _, spilled in rows if spilled} == {}


def test_every_kernel_in_csrc_has_a_launcher():
    assert set(declared()) == {(kernel.source, kernel.name) for kernel in KERNELS}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_launcher_names_the_parameters_that_the_kernel_declares(kernel):
    assert kernel.parameters == declared()[kernel.source, kernel.name]


def test_an_error_names_the_file_and_line_it_came_from(monkeypatch, tmp_path):
    broken = flatten("select_topk.cuh").replace("const i64 row = blockIdx.x;", "const i64 row = missing_name;", 1)
    line = next(n for n, text in enumerate((csrc() / "select_topk.cuh").read_text().splitlines(), 1)
                if "const i64 row = blockIdx.x;" in text)
    with pytest.raises(RuntimeError, match=rf"(?s)cannot compile.*select_topk.cuh\({line}\).*missing_name"):
        compiler.compile_text(nvrtc, broken, SELECT[1], ["-std=c++17", "-arch=sm_80"])


def test_flatten_inlines_every_header_once(tmp_path):
    (tmp_path / "a.h").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.h").write_text('#pragma once\n#include "a.h"\nint b;\n')
    (tmp_path / "c.cuh").write_text('#include "a.h"\n#include "b.h"\n#include "elsewhere.h"\nint c;\n')
    text = flatten("c.cuh", tmp_path)
    assert [line for line in text.splitlines() if line.startswith("int")] == ["int a;", "int b;", "int c;"]
    assert text.count("#include") == 1 and '#include "elsewhere.h"' in text and "#pragma once" not in text
    lines = text.splitlines()
    assert lines[lines.index("int b;") + 1] == '#line 3 "c.cuh"'


def test_an_installed_package_brings_its_cuda_sources(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "base"), "build_py",
               "--build-lib", str(tmp_path / "lib"), "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, cwd=csrc().parent, env={**os.environ, "BUDGETPRUNE_BUILD": "0"}, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needed = {path.name for pattern in ("*.cuh", "*.h") for path in csrc().glob(pattern)}
    installed = tmp_path / "lib" / "budgetprune"
    assert {path.name for path in (installed / "csrc").iterdir()} == needed
    code = ("import importlib.util, sys; spec = importlib.util.spec_from_file_location('source', sys.argv[1]);"
            "source = importlib.util.module_from_spec(spec); spec.loader.exec_module(source); print(source.csrc())")
    found = subprocess.run([sys.executable, "-c", code, str(installed / "ops" / "_nvrtc" / "source.py")], check=True,
                           capture_output=True, text=True)
    assert found.stdout.strip() == str(installed / "csrc")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETPRUNE_CACHE", str(tmp_path))
    return tmp_path / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    calls, real = [], compiler.compile_text
    monkeypatch.setattr(compiler, "compile_text", lambda *a: calls.append(a[2]) or real(*a))
    return calls


def test_a_kernel_is_compiled_once_and_then_read_from_the_cache(cache, compilations):
    first, second = compiler.code_of(nvrtc, *SELECT), compiler.code_of(nvrtc, *SELECT)
    assert first == second and len(compilations) == 1 and first.seconds > 0
    assert first.path.parent == cache and first.path.read_bytes()[:4] == b"\x7fELF"
    record, = compiler.records()
    assert (record.kernel, record.target, record.symbol) == (SELECT[1], "sm_90", first.symbol)
    assert record.bytes == first.path.stat().st_size and record.seconds == first.seconds
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize("changed", ["text", "nvrtc", "arch", "kernel", "headers"])
def test_whatever_makes_a_kernel_makes_another_entry(cache, compilations, monkeypatch, changed):
    compiler.code_of(nvrtc, *SELECT)
    source, expression, capability = SELECT
    if changed == "text":
        text, options = compiler.text_of(source)
        monkeypatch.setattr(compiler, "text_of", lambda source: (text + "// edited\n", options))
    elif changed == "nvrtc":
        monkeypatch.setattr(nvrtc, "getVersion", lambda: (99, 0))
    elif changed == "arch":
        capability = (8, 0)
    elif changed == "headers":
        monkeypatch.setattr(headers, "fingerprint", lambda: "others")
    else:
        expression = "budgetprune::select_topk_kernel<double>"
    compiler.code_of(nvrtc, source, expression, capability)
    assert len(compilations) == 2 and len(compiler.records()) == 2


@pytest.mark.parametrize("damage", ["code", "record", "code is gone", "record is gone", "record of another version"])
def test_a_damaged_entry_is_compiled_again(cache, compilations, damage):
    code = compiler.code_of(nvrtc, *SELECT)
    whole, record = code.path.read_bytes(), code.path.with_suffix(".json")
    if damage == "code":
        code.path.write_bytes(whole[:-1])
    elif damage == "record":
        record.write_text(record.read_text()[:-5])
    elif damage == "record of another version":
        record.write_text(json.dumps({"kernel": "other"}))
    else:
        (code.path if damage == "code is gone" else record).unlink()
    again = compiler.code_of(nvrtc, *SELECT)
    assert len(compilations) == 2 and again.symbol == code.symbol and len(again.path.read_bytes()) == len(whole)
    assert compiler.code_of(nvrtc, *SELECT) == again and len(compilations) == 2


def test_a_cache_that_cannot_be_written_is_named_and_kernels_still_load(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BUDGETPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written.*BUDGETPRUNE_CACHE names another folder"):
        assert compiler.code_of(nvrtc, *SELECT).path.read_bytes()[:4] == b"\x7fELF"
    assert compiler.records() == []


def test_cached_code_is_for_its_owner_alone(cache):
    mode = stat.S_IMODE(compiler.code_of(nvrtc, *SELECT).path.stat().st_mode)
    assert not mode & (stat.S_IWGRP | stat.S_IWOTH), "another user could change what this one's GPU runs"


def test_a_gpu_newer_than_this_nvrtc_gets_ptx(cache):
    newest = max(nvrtc.getSupportedArchs())
    code = compiler.code_of(nvrtc, *SELECT[:2], (99, 0))
    assert code.path.suffix == ".ptx" and f".target sm_{newest}" in code.path.read_text()
    assert compiler.target_of(nvrtc, divmod(newest, 10)) == f"sm_{newest}"


def test_a_gpu_older_than_all_that_nvrtc_knows_is_refused():
    with pytest.raises(RuntimeError, match="compute capability 3.5.*sm_75"):
        compiler.target_of(nvrtc, (3, 5))


def test_no_fast_math_is_asked_for():
    options = compiler.text_of("select_topk.cuh")[1]
    assert not [option for option in options if not option.startswith(("-std=", "-default-device", "-I"))]


@needs_halves
def test_the_half_headers_that_are_found_make_half_kernels(cache):
    for element in HALVES:
        code = compiler.code_of(nvrtc, "select_topk.cuh", f"budgetprune::select_topk_kernel<{element}>", (9, 0))
        assert element in code.symbol


def test_without_half_headers_the_text_names_none(monkeypatch):
    monkeypatch.setattr(headers, "half_headers", lambda: None)
    compiler.text_of.cache_clear()
    try:
        text, options = compiler.text_of("select_topk.cuh")
        assert "fp16" not in text and options == compiler.OPTIONS
        compiler.compile_text(nvrtc, text, SELECT[1], [*options, "-arch=sm_90"])
    finally:
        compiler.text_of.cache_clear()


def test_half_headers_are_found_under_cuda_home(monkeypatch, tmp_path):
    (tmp_path / "include").mkdir()
    for name in headers.HALVES:
        (tmp_path / "include" / name).write_text("")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert str(tmp_path / "include") in map(str, headers._folders())
