"""Run folders with records and, where asked for, pictures."""

import json

import pytest
from sample_run import RECORDS, png

from budgetprune.evaluation.record import append


@pytest.fixture
def run_dir(tmp_path):
    def make(records=RECORDS, pictures=None):
        for record in records:
            append(tmp_path / "records.jsonl", record)
        if pictures is not None:
            (tmp_path / "images").mkdir()
            (tmp_path / "images" / "0.png").write_bytes(png(16, 16))
            (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pictures))
        return tmp_path
    return make
