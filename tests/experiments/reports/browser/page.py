"""What tests of the page in a browser share: sizes, and how its parts are found."""

import re
import shutil

import pytest
from playwright.sync_api import expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARKUP = "<img src=x onerror='window.hit = 1'><b>"
OTHER = "zoo"  # a model and an estimator of somebody's own; it sorts last
SIZES = {"phone": (360, 740), "desktop": (1280, 900)}
NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


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
