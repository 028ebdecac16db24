"""The report in a real browser: what a pointer, keys and a narrow screen do to it."""

import json
import shutil

import pytest
from browser import BROWSER, MISSING, Browser
from sample_run import cell, picture, png

from budgetprune.evaluation import write_report
from budgetprune.evaluation.record import append

pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)
POPE, TEXT = "pope:coco_pope_popular", "textvqa:TextVQA_0.5.1_val"
LLAVA = {"model": "llava-1.5-7b-hf", "samples": 1000}
MANY = ("dart", "pooling", "tome", "prumerge", "cdpruner", "divprune", "vispruner", "uniform", "pyramiddrop", "none2",
        "prumerge_plus", "sparsevlm", "adaptive", "adaptive_query")


def metrics(f1):
    return {"f1": f1, "precision": f1 + 0.01}


RECORDS = [
    cell("none", 64, 195, 100_000_000, 4.0, decode_ms_per_token=0.5), cell("random", 4, 60, 20_000_000, 1.5),
    cell("random", 16, 104, 40_000_000, 2.0), cell("visionzip", 4, 150, 20_000_000, 1.6),
    cell("visionzip", 12, 194, 29_000_000, 2.0), cell("visionzip", 16, 194, 40_000_000),
    *(cell(name, keep, 100 + i, 10**6 * (20 + keep), 1.0 + i) for i, name in enumerate(MANY) for keep in (4, 16)),
    cell("none", 576, 860, 8 * 10**12, task=POPE, metrics=metrics(0.85), **LLAVA),
    cell("visionzip", 64, 800, 10**12, task=POPE, metrics=metrics(0.79), **LLAVA),
    cell("visionzip", 192, 840, 3 * 10**12, task=POPE, metrics=metrics(0.83), **LLAVA),
    cell("visionzip", 192, 540, 3 * 10**12, task=TEXT, **LLAVA), cell("none", 576, 580, 8 * 10**12, task=TEXT, **LLAVA)]
SHOTS = [picture("visionzip", 4, (0, 1, 2, 3)), picture("visionzip", 12, range(12)),
         picture("random", 4, (3, 7, 11, 15)), picture("random", 16, range(16), prediction="1"),
         picture("fastv", 4, (5, 6, 9, 10)),
         picture("visionzip", 4, (8, 9), question="blue digit ?", answer="3"),
         picture("visionzip", 64, (0, 95), grid=[8, 12], task=POPE, question="Is there a cup?", image="images/1.png")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(browser, the report of a run of three tasks), opened anew for every test by `fresh`."""
    folder = tmp_path_factory.mktemp("run")
    for record in RECORDS:
        append(folder / "records.jsonl", record)
    (folder / "images").mkdir()
    for number, size in enumerate([(16, 16), (192, 128)]):
        (folder / "images" / f"{number}.png").write_bytes(png(*size))
    (folder / "pictures.jsonl").write_text("".join(json.dumps(shot) + "\n" for shot in SHOTS))
    report = write_report(folder)
    browser = Browser(folder / "profile")
    yield browser, report
    browser.close()
    shutil.rmtree(folder / "profile", ignore_errors=True)


@pytest.fixture
def fresh(page):
    """The report just opened at 1200 px; what the console said by the end of the test is a failure."""
    browser, report = page
    browser.problems.clear()
    browser.resize(1200)
    browser.media(prefers_color_scheme="light")
    browser.open(report)
    yield browser
    browser.settle()
    assert browser.problems == []


def count(browser, selector):
    return browser.run(f"document.querySelectorAll('{selector}').length")


def text(browser, selector):
    return browser.run(f"document.querySelector('{selector}').textContent")


def slot_of(browser, method):
    return browser.run("[...document.querySelectorAll('.keys button')].find((e) => e.textContent === "
                       f"'{method}').dataset.curve")


def masks(browser):
    return browser.run("[...document.querySelectorAll('.side .dim')].map((e) => e.getAttribute('d'))")


def verdicts(browser):
    return browser.run("[...document.querySelectorAll('.side .said')].map((e) => e.textContent.trim())")


@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_no_text_of_a_chart_is_small(fresh, width, scheme):
    fresh.resize(width)
    fresh.media(prefers_color_scheme=scheme)
    fresh.run("document.querySelector('details').open = true")
    assert fresh.run("document.documentElement.scrollWidth") <= width
    sticking = fresh.run("""[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg') &&
        e.getClientRects().length && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map((e) => `${e.tagName} ${e.className}`)""")
    assert sticking == []
    smallest = fresh.run("""Math.min(...[...document.querySelectorAll('svg.chart')].filter((e) =>
        e.getClientRects().length).map((e) => 12 * e.getBoundingClientRect().width / e.viewBox.baseVal.width))""")
    assert smallest >= 10.5
    cut = fresh.run("""[...document.querySelectorAll('svg.chart text')].filter((e) => e.getClientRects().length).filter(
        (e) => { const a = e.getBoundingClientRect(), b = e.closest('svg').getBoundingClientRect();
        return a.left < b.left - 1 || a.right > b.right + 1; }).map((e) => e.textContent)""")
    assert cut == []


def test_words_stand_out_from_their_ground_in_both_schemes(fresh):
    """WCAG's contrast of text, 4.5, and of what is drawn, 3."""
    script = """(() => {
      const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
      const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, v, i) =>
          sum + [.2126, .7152, .0722][i] * linear(v / 255), 0);
      const ground = (e) => { const c = getComputedStyle(e).backgroundColor;
          return c.endsWith(', 0)') && e.parentElement ? ground(e.parentElement) : c; };
      const ratio = (e) => { const [x, y] = [light(getComputedStyle(e).color), light(ground(e))].sort((p, q) => q - p);
          return (x + .05) / (y + .05); };
      const least = (list) => Math.min(...[...document.querySelectorAll(list)].map(ratio));
      return [least('p, h1, h2, h3, dt, dd, label, figcaption, button, td, th, caption'), least('.plot .curve')];
    })()"""
    for scheme in ("light", "dark"):
        fresh.media(prefers_color_scheme=scheme)
        words, curves = fresh.run(script)
        assert words >= 4.5 and curves >= 3, scheme


def test_a_pointer_on_a_point_and_the_arrow_keys_explain_it(fresh):
    assert fresh.run("document.getElementById('tip').hidden")
    fresh.hover("#group-0 .plot .curve[data-curve='0'] .pt:nth-of-type(2) .mark")
    assert not fresh.run("document.getElementById('tip').hidden")
    assert text(fresh, "#tip").startswith("visionzip12 of 64 image tokensaccuracy 0.9700 (0.936 to 0.986)29 MFLOPs")
    fresh.press("ArrowRight", "#group-1 .plot .chart")
    assert text(fresh, "#tip").startswith("visionzip64 of 576 image tokensaccuracy 0.8000")
    fresh.press("ArrowRight")
    assert text(fresh, "#tip").startswith("visionzip192 of 576 image tokensaccuracy 0.8400")
    fresh.press("ArrowLeft")
    assert "64 of 576" in text(fresh, "#tip")
    fresh.hover(".panels .pt .mark")
    assert "published, not measured here" in text(fresh, "#tip")


def test_a_method_in_the_legend_hides_its_curve_and_its_rows(fresh):
    rows = "[...document.querySelectorAll('#every-cell tbody tr')].filter((e) => !e.hidden).length"
    slot = slot_of(fresh, "random")
    curve, key = f'.plot .curve[data-curve="{slot}"]', f'.keys [data-curve="{slot}"]'
    assert count(fresh, curve) == 1 and fresh.run(rows) == len(RECORDS)
    fresh.click(key)
    assert count(fresh, curve) == 0 and fresh.run(rows) == len(RECORDS) - 2
    assert fresh.run(f"document.querySelector('{key}').getAttribute('aria-pressed')") == "false"
    assert f"{len(RECORDS) - 2} of {len(RECORDS)} are shown" in text(fresh, "#every-cell caption")
    fresh.press("Enter", key)
    assert count(fresh, curve) == 1 and fresh.run(rows) == len(RECORDS)
    fresh.click('[data-some="none"]')
    assert count(fresh, ".plot .curve") == 0
    fresh.click('[data-some="front"]')
    fresh.hover(key)
    assert 0 < count(fresh, ".plot .curve") < 4


def test_promised_and_measured_follow_the_methods_and_the_task_that_are_shown(fresh):
    rows = "[...document.querySelectorAll('#promised tbody tr')].filter((e) => !e.hidden).length"
    marks = "[...document.querySelectorAll('#promised .pt')].filter((e) => e.getClientRects().length).length"
    timed = sum(r.prefill_ms is not None and r.method != "none" for r in RECORDS)
    assert fresh.run(rows) == fresh.run(marks) == timed
    fresh.hover(f"#promised [data-slot='{slot_of(fresh, 'random')}'] .pt .mark")
    assert text(fresh, "#tip").startswith("random4 of 64 image tokensFLOPs 20.0% of fulltime 37.5% of full, measured")
    fresh.click(f".keys [data-curve='{slot_of(fresh, 'random')}']")
    assert fresh.run(rows) == fresh.run(marks) == timed - 2
    fresh.press("ArrowRight", "#promised .chart")
    assert not text(fresh, "#tip").startswith("random")
    fresh.choose("#task", "1")  # of which no cell was timed
    assert fresh.run(rows) == fresh.run(marks) == 0


def test_bars_stand_for_the_shares_that_are_written_above_them(fresh):
    wide = fresh.run("""(() => { const cell = [...document.querySelectorAll('#promised td.promised')].find((e) =>
        e.textContent.startsWith('40.0')); const style = getComputedStyle(cell);
        return [style.getPropertyValue('--bar'), style.backgroundImage.slice(0, 15)]; })()""")
    assert wide == ["0.400", "linear-gradient"]


def test_an_axis_fits_what_is_shown(fresh):
    lowest = ("Math.min(...[...document.querySelectorAll('#group-0 .plot .axis text[text-anchor=end]')].map((e) => "
              "Number(e.textContent)).filter((v) => v > 0))")
    before = fresh.run(lowest)
    slot = slot_of(fresh, "visionzip")
    fresh.click('[data-some="none"]')
    fresh.click(f'.keys [data-curve="{slot}"]')
    assert fresh.run(lowest) > before


def test_the_cost_changes_the_axis_and_one_that_nobody_measured_says_why(fresh):
    names = "[...document.querySelectorAll('#group-0 .plot .across')].map((e) => e.textContent)"
    assert fresh.run(names) == ["Prefill (MFLOPs) →"]
    fresh.click('input[value="prefill_ms"]')
    assert fresh.run(names) == ["Prefill time (ms) →"]
    assert text(fresh, "#group-0 .drawn figcaption") == "1 of its cells lack this and are not drawn."
    assert text(fresh, "#group-1 .plot") == "Prefill time: no cell of this task has it."
    fresh.press("ArrowRight", 'input[value="decode_ms_per_token"]')
    assert fresh.run(names) == ["Image tokens kept →"]  # from decoding on to tokens
    fresh.click('input[value="peak_bytes"]')
    assert fresh.run(names) == ["Image tokens kept →"] and fresh.run(
        "document.querySelector('input[value=peak_bytes]').disabled")
    assert text(fresh, "#off").startswith("Memory: not recorded")


def test_a_task_alone_is_shown_with_its_methods_and_rows(fresh):
    assert count(fresh, ".groups.many .group") == 3
    fresh.choose("#task", "1")
    shown = fresh.run("[...document.querySelectorAll('.group')].filter((e) => !e.hidden).map((e) => e.id)")
    assert shown == ["group-1"] and count(fresh, ".groups.many") == 0
    assert fresh.run("[...document.querySelectorAll('.keys button')].filter((e) => !e.hidden).map((e) => e.textContent)"
                     ) == ["visionzip"]
    assert fresh.run("[...document.querySelectorAll('#every-cell tbody tr')].filter((e) => !e.hidden).length") == 3


def test_published_scores_stand_with_their_own_task_score_and_axis_only(fresh):
    grey = [f"#group-{i} .plot .published" for i in range(3)]
    assert [count(fresh, selector) for selector in grey] == [0, 0, 0]  # FLOPs are counted in ways that differ
    fresh.click('input[value="keep"]')
    assert count(fresh, grey[0]) == count(fresh, grey[1]) == 0 and count(fresh, grey[2]) > 3
    assert not fresh.run("document.getElementById('references').hidden")
    fresh.choose("#score", "f1")  # POPE's published score; digits and TextVQA have none of that name
    assert count(fresh, grey[1]) > 3 and count(fresh, grey[2]) == 0
    assert text(fresh, "#group-2 .plot") == "f1: no cell of this task has it."
    fresh.hover(grey[1] + " .mark")
    assert "published, not measured here" in text(fresh, "#tip")


def test_the_slider_moves_the_patches_and_the_answers(fresh):
    assert fresh.run("document.querySelector('#budget').getAttribute('aria-valuetext')") == "12 image tokens"
    before = masks(fresh)
    fresh.press("ArrowLeft", "#budget")
    assert text(fresh, "#budget-says") == "4"
    after = masks(fresh)
    assert after[0] == "M0 1h4v1h-4zM0 2h4v1h-4zM0 3h4v1h-4z" and after != before
    fresh.press("End", "#budget")
    assert text(fresh, "#budget-says") == "16" and "Not run at 16; shown is K = 12" in text(fresh, ".side .means")
    fresh.press("Home", "#budget")
    assert masks(fresh) == after
    cards = fresh.run("[...document.querySelectorAll('.card')].filter((e) => !e.hidden)"
                      ".map((e) => e.querySelector('.dim').getAttribute('d'))")
    assert cards[0] == after[0] and len(cards) == 2


def test_two_methods_are_compared_on_one_image(fresh):
    fresh.press("Home", "#budget")
    assert verdicts(fresh) == ["✓ right says 7", "✓ right says 7"]
    assert text(fresh, "#overlap") == "Patches kept by both: 1; by the left only: 3; by the right only: 3."
    assert masks(fresh)[1] == "M0 0h3v1h-3zM0 1h3v1h-3zM0 2h3v1h-3zM0 3h3v1h-3z"
    names = fresh.run("[...document.querySelectorAll('.side select option')].map((e) => e.textContent)")
    assert names == ["visionzip", "random", "fastv"] * 2
    fresh.choose('[data-side="1"] select', "2")
    assert masks(fresh)[1] == "M0 0h4v1h-4zM0 1h1v1h-1zM3 1h1v1h-1zM0 2h1v1h-1zM3 2h1v1h-1zM0 3h4v1h-4z"
    assert "inside the language model" in text(fresh, '[data-side="1"] .means')
    assert text(fresh, "#overlap") == "Patches kept by both: 0; by the left only: 4; by the right only: 4."
    fresh.choose('[data-side="1"] select', "1")
    fresh.press("End", "#budget")
    assert verdicts(fresh)[1] == "✗ wrong says 1"
    outline = "getComputedStyle(document.querySelector('.only')).stroke"
    assert fresh.run(outline) == "none"
    fresh.click("#differ")
    assert fresh.run(outline) != "none"


def test_another_image_and_another_task_are_looked_at(fresh):
    fresh.click('[data-scene="1"] .pick')
    assert text(fresh, "#asked") == "blue digit ?" and text(fresh, "#expected") == "Answer: 3"
    assert "not run on this image" in text(fresh, '[data-side="1"] .words')
    fresh.choose("#scene-task", POPE)
    assert text(fresh, "#asked") == "Is there a cup?" and masks(fresh)[0].startswith("M1 0h11v1h-11z")
    assert fresh.run("[...document.querySelectorAll('.card')].filter((e) => !e.hidden).length") == 1


def test_a_column_head_sorts_and_what_was_not_measured_stays_last(fresh):
    kept = "[...document.querySelector('#every-cell tbody').rows].map((r) => Number(r.cells[3].textContent))"
    fresh.click("#every-cell thead th:nth-child(4) button")
    assert fresh.run(kept) == sorted(r.keep for r in RECORDS)
    fresh.click("#every-cell thead th:nth-child(4) button")
    assert fresh.run(kept) == sorted((r.keep for r in RECORDS), reverse=True)
    f1 = "[...document.querySelector('#every-cell tbody').rows].map((r) => r.cells[12].textContent)"
    assert fresh.run("document.querySelectorAll('#every-cell thead th')[12].textContent") == "f1metric"
    fresh.click("#every-cell thead th:nth-child(13) button")
    assert fresh.run(f1)[:4] == ["0.7900", "0.8300", "0.8500", "–"]


def test_without_script_charts_table_and_pictures_are_there(page):
    browser, report = page
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.problems.clear()
        browser.open(report)
        shown = {}
        for name in (".pairing .chart", ".card .dim", "#every-cell tr", ".panels .chart", ".controls", "#compare"):
            node = browser.send("DOM.querySelector", nodeId=browser.send("DOM.getDocument")["root"]["nodeId"],
                                selector=name)["nodeId"]
            try:
                shown[name] = browser.send("DOM.getBoxModel", nodeId=node)["model"]["height"] > 0
            except RuntimeError:  # it has no box
                shown[name] = False
        assert shown == {".pairing .chart": True, ".card .dim": True, "#every-cell tr": True, ".panels .chart": True,
                         ".controls": False, "#compare": False}
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper_stand_the_legend_and_the_methods_names_but_no_controls(fresh):
    slot = slot_of(fresh, "tome")
    fresh.click(f'.keys [data-curve="{slot}"]')
    fresh.send("Emulation.setEmulatedMedia", media="print")
    try:
        seen = "[...document.querySelectorAll('%s')].filter((e) => e.getClientRects().length).map((e) => e.textContent)"
        names = fresh.run(seen % ".keys button")
        assert "visionzip" in names and "tome" not in names
        assert len(fresh.run(seen % ".side select")) == 2 and len(fresh.run(seen % ".plot .chart")) == 3
        assert fresh.run(seen % ".controls, .some, .pick, #budget") == []
    finally:
        fresh.send("Emulation.setEmulatedMedia", media="")


def test_who_asked_for_less_motion_gets_none(fresh):
    moving = ("[...document.querySelectorAll('*')].filter((e) => parseFloat(getComputedStyle(e).transitionDuration))"
              ".length")
    assert fresh.run(moving) > 0
    fresh.media(prefers_reduced_motion="reduce")
    assert fresh.run(moving) == 0
