"""Tests of what benchmarks/ is made of, which is no package: its files find each other in their own folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
