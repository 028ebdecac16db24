"""The report says what the records say, needs nothing but itself, and survives hostile text."""

import json
import re
from dataclasses import replace

import pytest
from sample_run import HOSTILE, RECORDS, Page, cell, picture, report

from budgetprune.evaluation import markdown_table, write_report
from budgetprune.evaluation.record import wilson_interval
from budgetprune.evaluation.summary import group_records


def test_every_record_is_in_the_table(run_dir):
    rows = report(run_dir()).rows()
    assert [r[:3] for r in rows[1:]] == [
        ["none full model", "64", "0.9750"], ["learnt", "4", "0.7500"], ["learnt", "12", "0.9700"],
        ["learnt", "16", "0.9700"], ["random", "4", "0.3000"], ["random", "16", "0.5200"]]
    full, learnt = rows[1], rows[2]
    assert full[3:6] == ["0.9428 to 0.9893", "1.000", "100\u202f000\u202f000"]
    assert full[6:] == ["0\u00a0%", "4.000", "0.500", "3.0", "200", "0"]
    assert learnt[4:] == ["0.700", "20\u202f000\u202f000", "\u221280.0\u00a0%", "1.600", "\u2013", "\u2013", "200", "0"]


def test_the_headline_is_computed_from_the_records(run_dir):
    page = report(run_dir())
    sentence = page.all("p", class_="lead")[0]["text"].replace("\u00a0", " ")
    assert sentence == ("Keeping 12 of 64 image tokens, learnt reaches 0.970 accuracy (full model 0.975), with 71 % "
                        "fewer prefill FLOPs and 50 % less prefill time.")
    assert [e["text"].replace("\u00a0", " ") for e in page.all("dl", class_="tiles")] == [
        "12 of 64image tokens kept0.970accuracy, full model 0.975\u221271 %prefill FLOPs\u221250 %prefill time"]


def test_the_page_needs_nothing_else(run_dir):
    text = write_report(run_dir(pictures=[picture()])).read_text()
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "") and "https:" not in text
    assert "@import" not in text and "fetch(" not in text
    for element in Page(text).elements:
        for name in ("src", "href", "action", "poster", "data", "xlink:href", "srcset"):
            value = element.get(name)
            assert value is None or value.startswith(("data:", "#")), (element["tag"], name, value[:80])
    assert not re.search(r"url\((?!data:)", text)
    policy = next(e["content"] for e in Page(text).all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_hostile_strings_stay_text(run_dir):
    records = [cell("none", 4, 190, 9, 1.0), cell(HOSTILE, 2, 150, 5, 1.0, task="digits")]
    records = [replace(r, model=HOSTILE, device=HOSTILE, commit=HOSTILE) for r in records]
    shots = [picture(HOSTILE, 2, (0, 1), question=HOSTILE, answer=HOSTILE, prediction=HOSTILE + "</script><b>")]
    page = report(run_dir(records, shots), command=HOSTILE)
    assert len(page.all("script")) == 2 and not page.all("b", class_="x")
    assert page.rows()[2][0] == HOSTILE
    assert page.all("p", class_="ask")[0]["text"] == HOSTILE
    assert page.all("code")[0]["text"] == HOSTILE
    scenes = json.loads(page.all("script")[0]["text"])["pictures"]
    assert scenes["scenes"][0]["shots"][0]["says"] == HOSTILE + "</script><b>"
    assert scenes["methods"][0]["name"] == HOSTILE and scenes["wanted"] == [0, 2]


def test_missing_or_empty_records_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(ValueError, match="no records in .*records.jsonl: `budgetprune eval"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "records.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="`make demo`"):
        write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["records.jsonl"]


def test_the_page_is_replaced_whole_or_not_at_all(run_dir, monkeypatch):
    folder = run_dir()
    target = folder / "report.html"
    target.write_text("the old one")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert target.read_text() == "the old one"
    assert sorted(p.name for p in folder.iterdir()) == ["records.jsonl", "report.html"]
    monkeypatch.undo()
    assert write_report(folder) == target and "the old one" not in target.read_text()
    assert write_report(folder, folder / "a" / "b.html").exists()


def test_seeds_are_averaged_in_the_chart_and_kept_apart_in_the_table(run_dir):
    records = [RECORDS[0], cell("a", 4, 100, 10, 1.0, seed=1), cell("a", 4, 120, 10, 2.0, seed=2)]
    point = group_records(records)[0].curves[0].points[0]
    assert (point.accuracy, point.prefill_ms) == (pytest.approx(0.55), 1.5)
    assert (point.low, point.high) == (wilson_interval(100, 200)[0], wilson_interval(120, 200)[1])
    page = report(run_dir(records))
    assert [(r[2], r[-1]) for r in page.rows()[2:]] == [("0.5000", "1"), ("0.6000", "2")]
    assert "mean of 2 seeds" in "".join(e.get("data-tip", "") for e in page.elements)


def test_a_rerun_cell_shows_its_later_result(run_dir):
    rows = report(run_dir([*RECORDS, cell("random", 4, 80, 20_000_000)])).rows()
    assert len(rows) == 1 + len(RECORDS) and ["random", "4", "0.4000"] in [r[:3] for r in rows]


def test_several_tasks_have_a_chart_pair_each_and_their_columns(run_dir):
    page = report(run_dir([*RECORDS, cell("a", 4, 20, None, 1.0, task="shapes", kept_mean=3.5)]))
    assert len(page.all("div", class_="group")) == 2
    assert page.rows()[0][:5] == ["Method", "Task", "Model", "Kepttokens", "Mean kepttokens"]
    assert page.rows()[-1][:6] == ["a", "shapes", "tiny", "4", "3.50", "0.1000"]
    assert "Prefill FLOPs: not recorded." in [e["text"] for e in page.all("p", class_="missing")]


def test_the_mean_over_layers_stands_beside_k_where_a_method_acts_inside_the_language_model(run_dir):
    records = [*RECORDS, cell("deep", 4, 20, layer_mean=34.0)]
    assert "| deep | 4 (34.0 over layers) |" in markdown_table(records)
    assert ["deep", "4 (34.0 over layers)"] in [row[:2] for row in report(run_dir(records)).rows()]
    assert "over layers" not in markdown_table(RECORDS)


def test_markdown_table_has_one_row_per_record_and_dashes():
    lines = markdown_table([*RECORDS, cell("a|b\n<i>", 4, 20)]).splitlines()
    assert len(lines) == 2 + len(RECORDS) + 1
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "| learnt | 12 | 0.970 | 0.936 to 0.986 | \u2013 | 0.029 | \u221271.0\u00a0% | 2.00 | \u2013 |" in lines
    assert lines[-1].startswith("| a\\|b &lt;i&gt; | 4 | 0.100 |")
