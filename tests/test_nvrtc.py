"""Every kernel compiles at run time, by NVRTC, without a GPU and without a CUDA toolkit."""

import re

import pytest
from flatten import csrc, flatten

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="pip install nvidia-cuda-nvrtc cuda-bindings")

# (name of the type parameter, or nothing; name of the kernel)
KERNEL = re.compile(r"(?:template\s*<typename (\w+)>\s*)?"
                    r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(")
SOURCES = sorted(path.name for path in csrc().glob("*.cuh") if "__global__" in path.read_text())


def compiled(source, arch, kernels=()):
    """The machine code for `arch` and {kernel expression: its mangled name}; RuntimeError with the compiler's words."""
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), b"flat.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    for kernel in kernels:
        nvrtc.nvrtcAddNameExpression(program, kernel.encode())
    options = [b"-std=c++17", f"-arch=sm_{arch}".encode(), b"-ftz=true", b"-DNDEBUG"]  # as CuPy calls it
    error, = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode())
    size = nvrtc.nvrtcGetCUBINSize(program)[1]
    cubin = b" " * size
    nvrtc.nvrtcGetCUBIN(program, cubin)
    lowered = {kernel: nvrtc.nvrtcGetLoweredName(program, kernel.encode())[1] for kernel in kernels}
    nvrtc.nvrtcDestroyProgram(program)
    return cubin, lowered


def test_there_are_kernels_to_compile():
    assert {"select_topk.cuh", "gumbel_topk.cuh", "gumbel_topk_backward.cuh"} <= set(SOURCES)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", SOURCES)
def test_every_kernel_compiles_by_nvrtc(name, arch):
    text = (csrc() / name).read_text()
    kernels = KERNEL.findall(text)
    assert len(kernels) == text.count("__global__ void"), f"{name}: a kernel takes at most one type parameter"
    types = {80: ["float"], 90: ["float", "double", "__half", "__nv_bfloat16"], 100: ["float"]}[arch]
    halves = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
    source = flatten(name)
    if len(types) > 1:
        try:
            compiled(halves, arch)
        except RuntimeError:
            types = ["float", "double"]  # pip's NVRTC without the toolkit's half headers
        else:
            source = halves + source
    expressions = []
    for parameter, kernel in kernels:  # T is an element of a tensor; other letters are accumulators or vector words
        arguments = [f"<{element}>" for element in (types if parameter == "T" else ["float"])] if parameter else [""]
        expressions += [f"budgetprune::{kernel}{argument}" for argument in arguments]
    cubin, lowered = compiled(source, arch, expressions)
    assert cubin[:4] == b"\x7fELF"
    for expression in expressions:
        assert lowered[expression] in cubin, expression


def test_an_error_names_the_file_and_line_it_came_from():
    broken = flatten("select_topk.cuh").replace("const i64 row = blockIdx.x;", "const i64 row = missing_name;", 1)
    line = next(n for n, text in enumerate((csrc() / "select_topk.cuh").read_text().splitlines(), 1)
                if "const i64 row = blockIdx.x;" in text)
    with pytest.raises(RuntimeError, match=rf"select_topk.cuh\({line}\).*missing_name"):
        compiled(broken, 80, ["budgetprune::select_topk_kernel<float>"])


def test_flatten_inlines_every_header_once(tmp_path):
    (tmp_path / "a.h").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.h").write_text('#pragma once\n#include "a.h"\nint b;\n')
    (tmp_path / "c.cuh").write_text('#include "a.h"\n#include "b.h"\nint c;\n')
    text = flatten("c.cuh", tmp_path)
    assert [line for line in text.splitlines() if line.startswith("int")] == ["int a;", "int b;", "int c;"]
    assert "#include" not in text and "#pragma once" not in text
    lines = text.splitlines()
    assert lines[lines.index("int c;") - 1] == '#line 3 "c.cuh"'
