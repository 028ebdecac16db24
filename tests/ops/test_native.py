"""The compiled ops and their plain-torch references are the same ops: same schemas, same answers."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys

import pytest
import torch

import budgetprune.ops
from budgetprune.ops import _native

PROVIDED = re.compile(r'provide\(\s*((?:"[^"]*"\s*)+),', re.DOTALL)


def schemas():
    """{op name: the schema string that its reference is provided under}, read from the source of every op's file."""
    found = {}
    for module in pkgutil.iter_modules(budgetprune.ops.__path__):
        file = importlib.util.find_spec(f"budgetprune.ops.{module.name}").origin
        with open(file, encoding="utf-8") as source:
            for match in PROVIDED.finditer(source.read()):
                schema = "".join(re.findall(r'"([^"]*)"', match[1]))
                found[schema.split("(", 1)[0]] = schema
    return found


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def test_every_reference_has_the_schema_of_the_compiled_op():
    assert {"select_topk", "gumbel_topk", "gumbel_topk_backward"} <= set(schemas())
    for name, schema in schemas().items():
        registered = getattr(torch.ops.budgetprune, name).default._schema
        assert registered == torch._C.parse_schema(f"budgetprune::{schema}"), name


@pytest.mark.skipif(_native.FACTS is None, reason=f"no compiled kernels: {_native.PROBLEM}")
def test_the_binary_says_how_it_was_built():
    assert set(_native.FACTS) == {"stable_abi_target", "compiler", "cuda_archs", "nvcc"}
    assert _native.PROBLEM is None and _native.FACTS["compiler"]


FALLBACK = """
import sys, torch
from budgetprune.ops import _native, gumbel_topk, select_topk
generator = torch.Generator().manual_seed(0)
logits = torch.randn(6, 577, generator=generator)
logits[1, 5], logits[2, 7], logits[3, :9] = float("nan"), float("-inf"), 2.0
counts = torch.tensor([0, 5, 577, 100, 1, 576], dtype=torch.int32)
key = torch.tensor([-3, 2**62])
answers = [select_topk(logits, 100), select_topk(logits, counts)]
for estimator, noise in (("race", "gumbel"), ("fermi", "logistic"), ("softmax", "gumbel"), ("race", "none")):
    leaf = logits.clone().requires_grad_()
    gate, kept = gumbel_topk(leaf, counts, key=key, tau=0.7, estimator=estimator, noise=noise)
    (gate * torch.linspace(-1, 1, 577)).sum().backward()
    answers += [gate.detach(), kept, leaf.grad]
torch.save((_native.PROBLEM, answers), sys.argv[1] if len(sys.argv) > 1 else {path!r})
"""


@pytest.mark.skipif(_native.FACTS is None, reason=f"no compiled kernels: {_native.PROBLEM}")
def test_the_references_serve_with_the_same_answers(tmp_path):
    results = []
    for reference in ("0", "1"):
        path = str(tmp_path / f"{reference}.pt")
        done = python(FALLBACK.format(path=path), BUDGETPRUNE_REFERENCE=reference)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path))
    (problem, compiled), (reason, plain) = results
    assert problem is None and "BUDGETPRUNE_REFERENCE=1" in reason
    assert len(compiled) == 14
    for at, (ours, theirs) in enumerate(zip(compiled, plain)):
        exact = at < 2 or (at - 2) % 3 < 2  # positions and gates are equal bit for bit, gradients up to rounding
        torch.testing.assert_close(ours, theirs, equal_nan=True, **({"rtol": 0, "atol": 0} if exact else
                                                                   {"rtol": 1e-3, "atol": 1e-5}))


def test_importing_the_ops_wakes_neither_transformers_nor_the_gpu():
    done = python("import sys, torch, budgetprune.ops\n"
                  "heavy = {'transformers', 'peft', 'datasets', 'cupy', 'accelerate'} & set(sys.modules)\n"
                  "assert not heavy, heavy\n"
                  "assert not torch.cuda.is_initialized()")
    assert done.returncode == 0, done.stderr
