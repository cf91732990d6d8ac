"""The page in headless Chromium, opened from the disk: what is clicked, sorted, copied and seen."""

import json
import re
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from experiments.config import ROOT
from experiments.reports import tables
from experiments.reports.page import __main__ as command

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CENTRED = ROOT / "results" / "centred"  # real records, of which some are changed below
MARKUP = "zoo<img src=x onerror='window.hit = 1'><b>"  # it sorts last
SIZES = {"phone": (360, 740), "desktop": (1280, 900)}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Published records, one that failed, one with markup in its names, one file that is none."""
    folder = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(CENTRED, folder, ignore=lambda _, names: [n for n in names if "-s2-" in n])
    content = json.loads(min(CENTRED.glob("*-full-full-*")).read_text())
    failed = {"status": "failed", "metrics": None, "config": content["config"] | {"seed": 5}}
    failed["error"] = {"type": "RuntimeError", "message": "</script>" + MARKUP}
    (folder / "failed.json").write_text(json.dumps(content | failed))
    content["config"]["model"]["name"] = MARKUP
    content["config"]["estimator"] |= {"name": MARKUP}
    content["metrics"]["loss_curve"] = {"step": [1, 2], "loss": [0.7, 0.6]}
    (folder / "a<b>.json").write_text(json.dumps(content))
    (folder / "notes.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def path(runs):
    path = runs.parent / "page.html"
    assert command.main([str(runs), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, path):
    """Opens the page at a width and in a scheme; at the end nothing must have gone wrong."""
    wrong, contexts = [], []

    def open_page(size="desktop", scheme="light"):
        width, height = SIZES[size]
        view = {"width": width, "height": height}
        context = browser.new_context(viewport=view, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.append(asked.url))
        page.goto(path.as_uri())
        wrong.remove(path.as_uri())  # the page itself, and nothing else
        page.wait_for_selector("#losses-plot .scatterlayer")
        contexts.append(context)
        return page

    yield open_page
    for context in contexts:
        assert context.pages[0].evaluate("window.hit") is None  # no markup of a record was run
        context.close()
    assert wrong == []


def column(page, name, table="#measures"):
    """The cells of a column, in the order shown."""
    heads = page.locator(f"{table} thead th").all_inner_texts()
    at = heads.index(name) + 1
    return page.locator(f"{table} tbody tr:visible > :nth-child({at})").all_inner_texts()


def head(page, name, table="#measures"):
    """The button of a column, and its head."""
    button = page.locator(f"{table} thead button").get_by_text(name, exact=True)
    return button, button.locator("xpath=..")


def say(page, text, table="#measures"):
    """Wait till the page says that it has done so."""
    expect(page.locator(f"{table} [role=status]")).to_have_text(re.compile(text))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_is_drawn_and_accessible(show, size, scheme, tmp_path):
    page = show(size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    for plot in page.locator(".plot").all():
        assert plot.bounding_box()["height"] > 300
    for details in page.locator("summary").all()[:2]:
        details.click()
    found = Axe().run(page)
    assert [one["id"] for one in found.response["violations"]] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    drawn = page.locator("#costs-plot .main-svg").first
    assert drawn.evaluate("node => node.style.background") == ground
    shot = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(shot) > 50_000  # a blank page has less


def test_the_scheme_is_followed_while_the_page_is_open(show):
    page = show("desktop", "light")
    page.emulate_media(color_scheme="dark")
    drawn = page.locator("#costs-plot .main-svg").first
    expect(drawn).to_have_attribute("style", re.compile(r"rgb\(21, 24, 28\)"))


@pytest.mark.parametrize(("size", "rows"), [("phone", 3), ("desktop", 1)])
def test_plots_stand_one_below_the_other_on_a_phone(show, size, rows):
    titles = show(size).locator("#costs-plot").locator(".xtitle, .x2title, .x3title")
    assert len({round(title.bounding_box()["y"]) for title in titles.all()}) == rows


def test_a_click_and_a_key_sort(show):
    page = show()
    button, th = head(page, "peak MiB")
    button.click()
    assert th.get_attribute("aria-sort") == "ascending"
    up = [float(cell) for cell in column(page, "peak MiB") if cell != "–"]
    assert up == sorted(up)
    button.focus()
    page.keyboard.press("Enter")
    assert th.get_attribute("aria-sort") == "descending"
    down = [float(cell) for cell in column(page, "peak MiB") if cell != "–"]
    assert down == up[::-1]
    head(page, "estimator")[0].click()
    sorted_by = page.locator("#measures th:not([aria-sort=none])[aria-sort]")
    assert sorted_by.all_inner_texts() == ["estimator"]


def test_what_is_missing_comes_last_both_ways(show):
    page = show()
    button, _ = head(page, "score − full [95 %]")
    for _ in range(2):
        button.click()
        cells = column(page, "score − full [95 %]")
        missing = [cell == "–" for cell in cells]
        assert missing == sorted(missing)
        assert any(missing)
        assert not all(missing)


def test_the_filter_leaves_rows_with_all_words(show):
    page = show()
    page.fill("#filter", "PPS 0.3 leanest")
    assert column(page, "estimator") == ["pps/lowrank@0.3"]
    assert page.locator("#measures [role=status]").inner_text().startswith("1 of ")
    page.fill("#filter", "no such row")
    assert column(page, "estimator") == []
    page.fill("#filter", "")
    assert len(column(page, "estimator")) > 9


@pytest.mark.parametrize(("button", "suffix"), [("Copy LaTeX", ".tex"), ("Copy CSV", ".csv")])
def test_a_copy_is_the_file_of_the_table_command(show, button, suffix, runs, tmp_path):
    page = show()
    page.locator("#measures").get_by_text(button).click()
    say(page, "copied")
    readable = shutil.ignore_patterns("notes.json")  # the command refuses such a folder
    tables.write_tables(shutil.copytree(runs, tmp_path / "runs", ignore=readable), tmp_path / "t")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == (tmp_path / "t").with_suffix(suffix).read_text()


def test_a_copy_holds_the_rows_shown_in_their_order(show):
    page = show()
    page.fill("#filter", "pps 0.1")
    for _ in range(2):
        head(page, "estimator", "#scores")[0].click()
    page.locator("#scores").get_by_text("Copy CSV").click()
    say(page, "copied", "#scores")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    copied = [line.split(",")[2] for line in lines[1:]]
    assert copied == column(page, "estimator", "#scores")
    assert copied == ["pps/lowrank@0.1", "pps/lowrank@0.1", "pps@0.1"]


def test_without_a_clipboard_the_text_is_selected(show):
    page = show()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }")
    page.locator("#measures").get_by_text("Copy LaTeX").click()
    page.wait_for_selector("#measures textarea")
    assert "press Ctrl+C" in page.locator("#measures [role=status]").inner_text()
    assert page.evaluate("getSelection().toString()").startswith(r"\begin{tabular}")


def hovered(page, plot, text):
    """Moves over the points of a plot till one shows ``text``; returns what it shows."""
    for point in page.locator(f"{plot} .points path.point").all():
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(60)
        shown = page.locator(f"{plot} .hoverlayer").text_content()
        if text in shown:
            return shown
    return None


def test_pointing_shows_the_record(show):
    page = show()
    shown = hovered(page, "#costs-plot", "cola-minilm-full-")
    assert "seed: " in shown
    assert "commit: " in shown
    assert hovered(page, "#costs-plot", "score at best epoch") is not None


def test_markup_in_a_record_is_shown_as_it_is(show):
    page = show()
    page.select_option("#group", label=f"cola · {MARKUP} · full tuning · matthews_correlation")
    assert f"a<b>{MARKUP}@1, plain" in hovered(page, "#costs-plot", "a<b>")
    assert MARKUP in page.locator("#costs-plot .legendtext").all_text_contents()
    assert page.locator("#failures pre").first.inner_text().endswith(f"</script>{MARKUP}")


def test_methods_differ_by_shape(show):
    page = show()
    looks = page.locator("#costs-plot .legendpoints path").evaluate_all(
        "nodes => nodes.map(node => node.getAttribute('d') + node.style.fill)"
    )
    assert len(looks) > 5
    assert len(set(looks)) == len(looks)


def test_curves_of_chosen_runs(show):
    page = show()
    named = page.locator("#losses-plot .legendtext")
    chosen = page.locator("#choices input:checked").count()
    assert named.count() == chosen > 1
    page.locator("#none").click()
    assert named.count() == 0
    field = page.locator("#losses").get_by_label("Show runs with")
    field.fill("wtacrs@0.1 seed 1")
    page.locator("#choices label:visible").first.click()
    assert "wtacrs@0.1, " in named.all_text_contents()[0]


def test_the_origin_of_a_row_unfolds(show):
    page = show("phone")
    row = page.locator("#measures tbody tr").filter(has_text="wtacrs@0.3").first
    assert not row.locator("dl").first.is_visible()
    row.locator("summary").click()
    item = row.locator("li").first
    assert 120 < item.bounding_box()["width"] < 180  # in sight beside the method's name
    told = item.inner_text()
    assert "estimator=wtacrs" in told
    assert "torch 2." in told
    assert page.evaluate("document.documentElement.scrollWidth") == 360
