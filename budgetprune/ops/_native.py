"""Loads the compiled kernels, or remembers why there are none so that the references serve."""

import os

import torch

LIBRARY = torch.library.Library("budgetprune", "FRAGMENT")


def _load():
    if os.environ.get("BUDGETPRUNE_REFERENCE", "0") == "1":
        return None, "BUDGETPRUNE_REFERENCE=1 asks for the plain-torch references"
    try:
        from budgetprune import _C
    except ImportError as error:
        return None, str(error)
    return _C.build_facts(), None


# FACTS: what the binary was built with, None without one; PROBLEM: why there is none.
FACTS, PROBLEM = _load()
HAS_CUDA_KERNELS = bool(FACTS and FACTS["cuda_archs"])


def provide(schema, reference):
    """Makes torch.ops.budgetprune.<name> exist: the compiled op, or `reference` where it has no kernel."""
    name = schema.split("(", 1)[0]
    if FACTS is None:
        LIBRARY.define(schema)
        LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    elif not HAS_CUDA_KERNELS:
        LIBRARY.impl(name, reference, "CUDA")
    return getattr(torch.ops.budgetprune, name).default
