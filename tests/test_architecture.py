"""The import arrows of the design. An arrow that is not drawn here is an error."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import budgetprune

PACKAGE = Path(budgetprune.__file__).parent
BASE = {"budget", "budget_sampler", "checked", "plan"}
MAY_IMPORT = {
    "budget": {"checked"},
    "budget_sampler": {"checked"},
    "checked": set(),
    "plan": set(),
    "cost": {"budget", "checked"},
    "ops": set(),
    "tasks": set(),
    "pruners": {"ops", "budget", "checked"},
    "selectors": BASE | {"ops", "pruners"},
    "compress": BASE | {"ops", "selectors", "cost"},
    "catalog": {"selectors", "compress"},
    "models": BASE | {"catalog", "ops", "pruners", "selectors", "compress", "cost"},
    "training": BASE | {"catalog", "models", "selectors", "pruners", "tasks", "cost"},
    "evaluation": BASE | {"catalog", "models", "selectors", "tasks", "cost"},
    "doctor": {"ops", "training"},
    "integrations": {"budget", "checked", "ops", "selectors"},
    "demo": {"catalog", "models", "training", "evaluation", "selectors", "tasks"},
    "study": {"catalog", "checked", "demo", "models", "training", "evaluation", "tasks"},
    "cli": {"budget", "catalog", "checked", "compress", "cost", "demo", "doctor", "evaluation",
            "integrations", "selectors", "study",
            "tasks", "training"},
    "__main__": {"cli"},
}
# Packages that importing one of our rooms may not wake, and the rooms where they are at home.
AT_HOME = {
    "transformers": {"models", "training", "evaluation", "integrations"},
    "peft": {"models", "training", "evaluation"},
    "cupy": {"ops"},
    "sklearn": {"tasks"},
    "tokenizers": {"training"},
    "scipy": {"cost", "evaluation", "study"},
    "typer": {"cli"},
    "lmms_eval": {"integrations"},
    "vllm": {"integrations"},
}


def imports(path):
    """(room of ours or None, name of the outer package or None) of every import in a file."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            full = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*full, alias.name] for alias in node.names]
            found = [full] if len(full) > 1 or full[0] != PACKAGE.name else names
        elif isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in found:
            ours = name[0] == PACKAGE.name
            yield (name[1] if ours and len(name) > 1 else None), (None if ours else name[0])


def room_of(name):
    """cli.py and its commands, cli_NAME.py, are one room."""
    return "cli" if name and name.startswith("cli_") else name


def files():
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 40
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    room = room_of(path.relative_to(PACKAGE).with_suffix("").parts[0])
    for ours, outer in imports(path):
        ours = room_of(ours)
        if ours is not None and ours != "_C":
            assert room in ("__init__", ours) or ours in MAY_IMPORT[room], f"{path} must not import {ours}"
        if outer in AT_HOME:
            assert room in AT_HOME[outer], f"{path} must not import {outer}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_outgrows_its_room(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("module, asleep", [
    ("budgetprune", ["torch", "transformers", "peft", "sklearn", "cupy"]),
    ("budgetprune.cost", ["torch", "numpy", "scipy"]),
    ("budgetprune.ops", ["transformers", "peft", "sklearn", "cupy"]),
    ("budgetprune.selectors", ["transformers", "peft", "sklearn", "cupy"]),
    ("budgetprune.catalog", ["transformers", "peft", "sklearn", "cupy"]),
    ("budgetprune.integrations", ["torch", "transformers", "lmms_eval", "vllm"]),
    ("budgetprune.cli", ["torch", "transformers", "numpy", "scipy"]),
])
def test_importing_wakes_no_more_than_it_needs(module, asleep):
    code = f"import sys, {module}; print([name for name in {asleep!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_test_files_have_one_name_each():
    """pytest imports them by their names; two of one name stop the whole run."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
