"""Data sets by their names on the Hub: found as a folder of that name, which `datasets` reads in the Hub's place."""

import json
import sys

import pytest
import run_ranks
import torch
from conversation_files import digits_rows

from budgetprune.training import records as records_of
from budgetprune.training.records import open_records


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits_rows(folder, broken=(5,))
    return folder


@pytest.fixture
def published(data, tmp_path, monkeypatch):
    """The rows of data.json as owner/name, their images in it, with a split more and a configuration more."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = json.loads((data / "data.json").read_text())
    for row in rows:
        image = row.pop("image", None)
        row["image"] = image and {"bytes": (data / "images" / image).read_bytes(), "path": image}
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "conversations": [
        {"from": datasets.Value("string"), "value": datasets.Value("string")}]})
    for name, part in (("data/train", rows), ("data/later", rows[:3]), ("small/train", rows[:5])):
        datasets.Dataset.from_list(part, features=features).to_parquet(f"owner/name/{name}-00000-of-00001.parquet")
    (tmp_path / "owner/name/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n"
        "  - {split: later, path: data/later-*}\n- config_name: small\n  data_files: small/*.parquet\n---\n")
    return rows


@pytest.mark.parametrize("name, count", [("hub:owner/name", 12), ("hub:owner/name:small", 5),
                                         ("hub:owner/name:default:later", 3), ("hub:owner/name::later", 3),
                                         ("hub:owner/name::train[2:6]", 4)])
def test_a_data_set_is_read_by_its_name_configuration_and_split(published, name, count):
    found = open_records(name)
    rows = published[2:6] if "[" in name else published[:count]
    assert len(found) == count and [found[i]["id"] for i in range(count)] == [row["id"] for row in rows]
    assert found.has_image.tolist() == [row["image"] is not None for row in rows]
    assert found[count - 1]["image"] is None or isinstance(found[count - 1]["image"]["bytes"], bytes)


def test_a_run_on_a_data_set_of_the_hub_is_the_run_on_the_file_it_was_made_of(data, published, tmp_path):
    """Order, counts and noise too, a broken image skipped, and stopped it goes on to the same bits."""
    expected, rows, skipped, _ = run_ranks.train(data, tmp_path / "file", "pruner")
    named = {"data": "hub:owner/name", "images": None}
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 4"):
        run_ranks.train(data, tmp_path / "hub", "pruner", stop_at=3, **named)
    ours, log, count, _ = run_ranks.train(data, tmp_path / "hub", "pruner", **named)
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], value) for name, value in expected.items())
    assert [row["loss"] for row in log] == [row["loss"] for row in rows] and count == skipped > 0


@pytest.mark.parametrize("name, match", [
    ("hub:owner/other", "data must be a set of the Hub that can be loaded, got hub:owner/other: .*owner/other"),
    ("hub:owner/name:huge", "got hub:owner/name:huge: .*huge.*"),
    ("hub:owner/name::nothing", 'got hub:owner/name::nothing: Unknown split "nothing"')])
def test_what_cannot_be_loaded_is_said(published, name, match):
    with pytest.raises(ValueError, match=match):
        open_records(name)


@pytest.mark.parametrize("name", ["hub:", "hub:a/b/c", "hub:/data/rows.json", "hub: owner/name", "hub::config"])
def test_a_name_of_another_form_is_refused_before_anything_is_asked_for(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="data must be hub:owner/name, hub:owner/name:config or hub:"):
        open_records(name)


def test_without_datasets_or_a_connection_it_is_said(monkeypatch):
    class Offline:
        @staticmethod
        def load_dataset(name, config, split):
            assert (name, config, split) == ("owner/name", None, "train")
            raise ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(records_of, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", Offline)
    with pytest.raises(ValueError, match=r"can be loaded, got hub:owner/name: Couldn't reach 'owner/name' on the Hub"):
        open_records("hub:owner/name")
    monkeypatch.setattr(records_of, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="datasets must be installed to read hub:owner/name: pip install datasets"):
        open_records("hub:owner/name")
    with pytest.raises(FileNotFoundError, match="owner/name, which is not there; .* of the Hub begins with hub:"):
        open_records("owner/name")
