"""Accuracy under both numberings: what is measured is what the table shows."""

import positions
import pytest

from budgetprune.evaluation import read


def test_every_method_that_has_the_choice_is_measured():
    assert {"uniform", "visionzip", "cdpruner"} <= set(positions.methods())
    assert not {"none", "adaptive", "fastv", "dart"} & set(positions.methods())


def test_a_cell_for_each_method_budget_and_numbering(tmp_path, monkeypatch):
    monkeypatch.setattr(positions, "methods", lambda: ["tome", "uniform"])
    monkeypatch.setattr(positions, "BUDGETS", (4, 9))
    positions.measure(tmp_path, samples=3)
    monkeypatch.setattr(positions, "RESULTS", tmp_path / "records.jsonl")
    records = read(tmp_path / "records.jsonl")
    assert len({(r.method, r.keep, r.method_options["positions"]) for r in records}) == len(records) == 8
    table = positions.positions_table()
    assert "| K = 4 | K = 9 |" in table and "3 questions a cell" in table
    for method in ("tome", "uniform"):
        (line,) = (line for line in table.splitlines() if line.startswith(f"| `{method}`"))
        assert line.count(" / ") == 2


@pytest.mark.parametrize("ci, bold", [((0.5, 0.6), False), ((0.2, 0.39), True)])
def test_only_a_clear_difference_is_bold(ci, bold):
    class Cell:
        def __init__(self, accuracy, ci95):
            self.accuracy, self.ci95 = accuracy, ci95

    cells = {("m", 4, "original"): Cell(0.5, (0.4, 0.6)), ("m", 4, "compact"): Cell(0.3, ci)}
    assert positions._accuracy(cells, "m", 4, "original") == ("**0.500**" if bold else "0.500")
    assert positions._accuracy(cells, "m", 4, "compact") == "0.300"
