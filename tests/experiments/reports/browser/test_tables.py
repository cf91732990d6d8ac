"""The tables of the page in headless Chromium: what is clicked, sorted, filtered and copied."""

import shutil

import pytest

from tests.experiments.reports.browser.page import NEEDED, column, head, say
from wtacrs_experiments.reports import tables

pytestmark = NEEDED


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
