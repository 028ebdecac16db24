"""Loads the compiled kernels, or remembers why there are none so that others serve.

BUDGETPRUNE_REFERENCE=1   the plain-torch references serve, on every device
BUDGETPRUNE_CUDA_KERNELS  which kernels serve CUDA tensors:
    auto (default)  those that nvcc built into the binary; else CuPy's (ops/_nvrtc); else the references
    nvcc, cupy      these only: a CUDA tensor raises RuntimeError where they cannot serve
    reference       the references
"""

import os
import warnings

import torch

LIBRARY = torch.library.Library("budgetprune", "FRAGMENT")
CHOICES = ("auto", "nvcc", "cupy", "reference")


def _load():
    if os.environ.get("BUDGETPRUNE_REFERENCE", "0") == "1":
        return None, "BUDGETPRUNE_REFERENCE=1 asks for the plain-torch references"
    try:
        from budgetprune import _C
    except ImportError as error:
        return None, str(error)
    return _C.build_facts(), None


def _choose(facts):
    """(what was asked for, what serves CUDA tensors: "nvcc", "cupy" or "reference")."""
    asked = os.environ.get("BUDGETPRUNE_CUDA_KERNELS", "auto")
    if asked not in CHOICES:
        raise ValueError(f"BUDGETPRUNE_CUDA_KERNELS must be one of {', '.join(CHOICES)}, got {asked!r}")
    if os.environ.get("BUDGETPRUNE_REFERENCE", "0") == "1":
        return asked, "reference"
    if asked != "auto":
        return asked, asked
    return asked, "nvcc" if facts and facts["cuda_archs"] else "cupy"


# FACTS: what the binary was built with, None without one; PROBLEM: why there is none.
FACTS, PROBLEM = _load()
HAS_CUDA_KERNELS = bool(FACTS and FACTS["cuda_archs"])
ASKED, CUDA_KERNELS = _choose(FACTS)


def provide(schema, reference):
    """Makes torch.ops.budgetprune.<name> exist: the compiled op, or what serves where it has no kernel."""
    name = schema.split("(", 1)[0]
    if FACTS is None:
        LIBRARY.define(schema)
        LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if CUDA_KERNELS == "nvcc" and HAS_CUDA_KERNELS:
        return getattr(torch.ops.budgetprune, name).default
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verrid.*previously registered kernel")  # as was asked for
        LIBRARY.impl(name, _on_cuda(name, reference), "CUDA")
    return getattr(torch.ops.budgetprune, name).default


def _on_cuda(name, reference):
    """What takes an op's CUDA tensors. Nothing is imported or compiled before the first of them arrives."""
    if CUDA_KERNELS == "reference":
        return reference
    serve = None

    def call(*arguments):
        nonlocal serve
        if serve is None:
            if CUDA_KERNELS == "nvcc":
                raise RuntimeError("BUDGETPRUNE_CUDA_KERNELS=nvcc, but the binary has no CUDA kernels: install the "
                                   "CUDA toolkit and reinstall budgetprune")
            from . import _nvrtc

            serve = _nvrtc.implementation(name, reference, strict=ASKED == "cupy")
        return serve(*arguments)

    return call
