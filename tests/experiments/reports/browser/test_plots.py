"""The page in headless Chromium, opened from the disk: what is seen, pointed at and chosen."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.experiments.reports.browser.page import MARKUP, NEEDED, OTHER, SIZES, hovered

pytestmark = NEEDED


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


def test_pointing_shows_the_record(show):
    page = show()
    shown = hovered(page, "#costs-plot", "cola-minilm-full-")
    assert "seed: " in shown
    assert "commit: " in shown
    assert hovered(page, "#costs-plot", "score at best epoch") is not None


def test_markup_in_a_record_is_shown_as_it_is(show):
    page = show()
    page.select_option("#group", label=f"cola · {OTHER} · full tuning · matthews_correlation")
    assert f"a<b>{OTHER}@1, grad_norms=none, plain" in hovered(page, "#costs-plot", "a<b>")
    assert OTHER in page.locator("#costs-plot .legendtext").all_text_contents()
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
