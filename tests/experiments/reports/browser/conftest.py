"""Headless Chromium, and the page of real records of which some are changed."""

import json
import shutil

import pytest
from playwright.sync_api import sync_playwright

from tests.experiments.reports.browser.page import CHROMIUM, MARKUP, OTHER, SIZES
from wtacrs_experiments.config import ROOT
from wtacrs_experiments.reports.page import __main__ as command

CENTRED = ROOT / "results" / "centred"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Published records, a failed one, one of others with markup in its file name; no record."""
    folder = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(CENTRED, folder, ignore=lambda _, names: [n for n in names if "-s2-" in n])
    content = json.loads(min(CENTRED.glob("*-full-full-*")).read_text())
    failed = {"status": "failed", "metrics": None, "config": content["config"] | {"seed": 5}}
    failed["error"] = {"type": "RuntimeError", "message": "</script>" + MARKUP}
    (folder / "failed.json").write_text(json.dumps(content | failed))
    content["config"]["model"]["name"] = OTHER
    content["config"]["estimator"] |= {"name": OTHER}
    content["metrics"]["loss_curve"] = {"step": [1, 2], "loss": [0.7, 0.6]}
    (folder / "a<b>.json").write_text(json.dumps(content))
    (folder / "notes.json").write_text("[]")
    return folder


@pytest.fixture(scope="session")
def path(runs):
    path = runs.parent / "page.html"
    assert command.main([str(runs), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
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
