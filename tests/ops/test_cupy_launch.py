"""The launches through CuPy do what the compiled ops do. Kernels run in an emulator, without CuPy and without a GPU."""

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from emulated_cupy import CXX, SIMT, emulated_gpu, recorded_launches
from launch_cases import CASES, KEPT, KEY, PROCESSORS, Q, heads, numbers

from budgetprune.ops import _nvrtc
from budgetprune.ops._nvrtc import (
    attention_received,
    fastv_select,
    gated_attention,
    gather_tokens,
    greedy_select,
    gumbel_topk,
    kernel,
    merge_tokens,
    select_topk,
    source,
)
from budgetprune.ops._nvrtc import compile as compiler
from budgetprune.ops._nvrtc.rows import row_in_registers

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="its fibers are written for x86-64"),
    pytest.mark.skipif(shutil.which(CXX) is None, reason=f"{CXX} is not on PATH"),
]
CPU = torch.device("cpu")

@pytest.fixture(scope="module")
def asked():
    """{source: instantiations that the cases launch}."""
    found = {}
    with emulated_gpu("/nowhere") as chip, recorded_launches() as launches:
        chip.processor_count = PROCESSORS
        for launch, cases in CASES.values():
            for arguments in cases():
                launch(*arguments)
    for one, variant in dict.fromkeys(launches):
        found.setdefault(one.source, []).append((one, variant))
    return found


@pytest.fixture(scope="module")
def gpu(asked, tmp_path_factory):
    """The emulated GPU, every kernel that is asked for compiled, one library a source."""
    def together(text):
        return next([one.expression(variant) for one, variant in several] for file, several in asked.items()
                    if compiler.text_of(file)[0] == text)

    with emulated_gpu(tmp_path_factory.mktemp("cache"), together) as chip:
        chip.processor_count = PROCESSORS
        first = [(file, one.expression(variant)) for file, ((one, variant), *_) in asked.items()]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda each: compiler.code_of(chip.nvrtc, *each, (9, 0)), first))
        yield chip


def slack(name, given, result):
    """Integers are the same. On tensor cores gated_attention rounds weights to the type that it was given."""
    if name.startswith("gated_attention") and given in (torch.float16, torch.bfloat16) and result.is_floating_point:
        return {torch.float16: {"rtol": 4e-3, "atol": 4e-3}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}[given]
    return {"rtol": 1e-4, "atol": 1e-6} if result == torch.float32 else {}


@pytest.mark.parametrize("name", CASES)
def test_a_launch_gives_what_the_compiled_op_gives(gpu, name):
    launch, cases = CASES[name]
    for arguments in cases():
        expected = getattr(torch.ops.budgetprune, name)(*arguments)
        found = launch(*arguments)
        for ours, theirs in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (found, expected)), strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, equal_nan=True, **slack(name, arguments[0].dtype, ours.dtype))


def test_the_cases_reach_every_launch_decision(asked):
    """Each kernel, and of those with several template arguments all but the element's."""
    reached = {(one.name, *variant[1:]) for several in asked.values() for one, variant in several}
    assert reached == {(one.name, *variant[1:]) for one in kernel.Kernel.every for variant in one.variants}
    elements = {variant[0] for several in asked.values() for _, variant in several if variant}
    assert elements == {*kernel.FLOATS, *gather_tokens.UNITS.values()}


def test_a_gpu_with_less_shared_memory_gets_the_kernels_that_fit():
    q = heads(1, 2, 70, 128, dtype=torch.float16)
    gate, lse = torch.ones(1, 70), torch.zeros(1, 2, 70)
    for shared, expected in ((227 * 1024, True), (99 * 1024, False)):  # an RTX 4090 grants 99 KB
        with emulated_gpu("/nowhere") as chip, recorded_launches() as launches:
            chip.shared = shared
            gated_attention.gated_attention_backward(q, q, q, q, gate, None, q, lse, True, 0.1)
        assert (gated_attention.DQ in {one for one, _ in launches}) == expected
        assert (gated_attention.PLAIN_DQ in {one for one, _ in launches}) != expected


def test_grids_and_blocks_are_those_of_the_cuda_launchers(tmp_path):
    rows, lengths = (1, 3, 263, 264, 1000), (1, 125, 126, 380, 381, 382, 637, 638, 1021, 1022, 4093, 4094, 8189)
    program = tmp_path / "decisions.cpp"
    program.write_text("""
#include "gather_tokens.cu"
#include "row_launch.h"
#include <cstdio>
using namespace budgetprune;
int main() {
  long rows, n;
  while (std::scanf("%ld %ld", &rows, &n) == 2) {
    for_row_in_registers(
        rows, i32(n), [&](auto items, u32 grid) { std::printf("1 %d %u 128 ", items.value, grid); },
        [&](auto items, u32 grid, u32 threads) { std::printf("0 %d %u %u ", items.value, grid, threads); });
    std::printf("%d\\n", chunks_of(rows, n));
  }
}
""")
    command = [CXX, "-std=c++17", "-O0", "-w", "-DBUDGETPRUNE_EMULATED", f"-I{SIMT}", f"-I{SIMT / 'include'}",
               f"-I{source.csrc()}", "-include", str(SIMT / "cuda_emulated.h"), str(program), "-o",
               str(tmp_path / "decisions")]
    subprocess.run(command, check=True)
    shapes = [(r, n) for r in rows for n in lengths]
    done = subprocess.run([str(tmp_path / "decisions")], input="\n".join(f"{r} {n}" for r, n in shapes), text=True,
                          capture_output=True, check=True)
    theirs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    with emulated_gpu(tmp_path):  # an H100 has 132 processors
        ours = [(*map(int, row_in_registers(r, n, CPU)), gather_tokens._chunks(r, n)) for r, n in shapes]
    assert ours == theirs


def test_an_argument_of_another_size_than_its_parameter_is_refused(gpu):
    wrong = kernel.Kernel("select_topk.cuh", "select_topk_kernel", "T*, i32*, i64, i32, i32*", kernel.FLOATS)
    kernel.Kernel.every.remove(wrong)
    with pytest.raises(AssertionError, match="parameter 2 takes 4 bytes, got 8"):
        wrong.launch(("float",), CPU, 1, 32, (numbers(1, 4), None, 4, 2, torch.empty(1, 2, dtype=torch.int32)))


@pytest.mark.parametrize("arguments", [(1, 2), (None,) * 6])
def test_a_wrong_number_of_arguments_is_refused(arguments):
    with pytest.raises(TypeError, match="select_topk_kernel takes 5 arguments"):
        select_topk.MEMORY.pack(arguments)


def test_an_unknown_instantiation_is_refused():
    with pytest.raises(ValueError, match="select_topk_warps<float, 5> is not among the instantiations"):
        select_topk.WARPS.launch(("float", 5), CPU, 1, 32, ())


def test_a_first_use_inside_a_graph_capture_says_what_to_do(gpu):
    kernel.forget()
    gpu.is_capturing = True
    try:
        with pytest.raises(RuntimeError, match="call the op once with these shapes and dtypes before the capture"):
            select_topk.select_topk(numbers(1, 9), None, 2)
        gpu.is_capturing = False
        first = select_topk.select_topk(numbers(1, 9), None, 2)
        gpu.is_capturing = True
        assert torch.equal(select_topk.select_topk(numbers(1, 9), None, 2), first)  # loaded: nothing but the launch
    finally:
        gpu.is_capturing = False


@pytest.mark.parametrize("call, words", [
    (lambda: select_topk.select_topk(numbers(2, 9), None, 10), "max_keep must be in"),
    (lambda: select_topk.select_topk(numbers(2, 9), torch.tensor([1, 2]), 2), "keep must be int32"),
    (lambda: select_topk.select_topk(torch.zeros(9), None, 2), "must be \\[B, N\\]"),
    (lambda: gumbel_topk.gumbel_topk(numbers(2, 9), None, 2, KEY[:1], 1.0, "race", "gumbel", True), "key must be"),
    (lambda: gumbel_topk.gumbel_topk(numbers(2, 9), None, 2, KEY, 0.0, "race", "gumbel", True), "tau must be"),
    (lambda: gumbel_topk.gumbel_topk(numbers(2, 9), None, 2, KEY, 1.0, "x", "gumbel", True), "estimator must be"),
    (lambda: gumbel_topk.gumbel_topk_backward(numbers(2, 8), numbers(2, 9), KEY, torch.zeros(2, 2), 1.0, "race",
                                              "gumbel"), "grad must be like"),
    (lambda: gather_tokens.gather_tokens(torch.zeros(2, 9, 4), KEPT, None, 0, False, 0), "kept must be"),
    (lambda: gather_tokens.gather_tokens(torch.zeros(3, 9, 4), KEPT, torch.zeros(3, 8), 0, False, 0), "gate must be"),
    (lambda: gather_tokens.gather_tokens(torch.zeros(3, 9, 4), KEPT, None, 0, True, 99), "total must be"),
    (lambda: gather_tokens.gather_tokens_backward(torch.zeros(3, 5, 4), KEPT, KEPT[:, 0], 0, 9, False), "grad must be"),
    (lambda: attention_received.attention_received(heads(2, 3, 4, 8), Q, "last", None, 1.0), "H must be"),
    (lambda: attention_received.attention_received(Q, Q, "one", None, 1.0), "rows must be"),
    (lambda: fastv_select.fastv_select(Q, Q, torch.ones(2, 3).bool(), None, 1, None, 3, 1.0), "image and mask must be"),
    (lambda: merge_tokens.merge_tokens(torch.zeros(2, 3, 4), KEPT[:2], KEPT[:1], torch.zeros(1, 4)), "index must be"),
    (lambda: merge_tokens.merge_dots(torch.zeros(2, 9, 4), torch.zeros(2, 3, 4), KEPT[:2], KEPT[:2]), "grad must be"),
    (lambda: merge_tokens.merge_transpose(KEPT, KEPT, -1), "N, M and E must be"),
    (lambda: greedy_select.greedy_select(torch.zeros(1, 3, 4), None, None, 2, "dpp"), "similarity must be"),
    (lambda: greedy_select.greedy_select(torch.zeros(1, 3, 3).half(), None, None, 2, "dpp"), "float32 or float64"),
    (lambda: greedy_select.greedy_select(torch.zeros(1, 3, 3), torch.zeros(1, 3), None, 2, "max_min"), "is for dpp"),
])
def test_direct_calls_guard_memory(call, words):
    with pytest.raises(RuntimeError, match=words):
        call()


def test_half_tensors_without_half_headers_are_served_by_the_reference(monkeypatch):
    monkeypatch.setattr(_nvrtc, "problem", lambda: None)
    monkeypatch.setattr(_nvrtc.headers, "half_headers", lambda: None)
    monkeypatch.setattr(kernel, "chip", lambda: pytest.fail("nothing may be compiled"))
    monkeypatch.setattr(kernel, "processors", lambda device: 132)

    def select_topk_reference(scores, keep, max_keep):
        return "served"

    select_topk_reference.__module__ = "budgetprune.ops.select_topk"
    serve = _nvrtc.implementation("select_topk", select_topk_reference, strict=False)
    with pytest.warns(UserWarning, match="which are not found: .*reference serves select_topk"):
        assert serve(numbers(2, 9, dtype=torch.float16), None, 2) == "served"
    strict = _nvrtc.implementation("select_topk", select_topk_reference, strict=True)
    with pytest.raises(RuntimeError, match="pip install nvidia-cuda-runtime"):
        strict(numbers(2, 9, dtype=torch.bfloat16), None, 2)


def test_every_op_of_the_launchers_is_found_by_its_name():
    for file in sorted(Path(_nvrtc.__file__).parent.glob("*.py")):
        ops = [name for name in CASES if CASES[name][0].__module__.endswith(f"_nvrtc.{file.stem}")]
        for name in ops:
            def reference():
                pass

            reference.__module__ = f"budgetprune.ops.{file.stem}"
            assert _nvrtc.launcher(name, reference) is CASES[name][0]
    reference.__module__ = "budgetprune.ops.no_such_op"
    assert _nvrtc.launcher("no_such_op", reference) is None
