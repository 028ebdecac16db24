"""What the integration tests share: entry points as an installation would have them, and the digits task on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, path: Path, *arguments, timeout: int = 240) -> subprocess.CompletedProcess:
    """Runs `code` in a process that finds `path` first: hosts read entry points once, when they are imported."""
    where = os.pathsep.join([str(path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": where, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                   "HF_HOME": str(path / "cache")}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          cwd=path, env=environment, timeout=timeout)


def declare_entry_points(folder: Path) -> None:
    """Writes the metadata that installing would write, from pyproject.toml: an editable install may be older."""
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11 or newer")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / "budgetprune-0.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: budgetprune\nVersion: 0.0.0\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
