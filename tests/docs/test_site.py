"""The pages build without a warning, a dead link is one, and they name what there is."""

import inspect
import re
import shutil
import subprocess
import sys

import pytest
import yaml

import wtacrs
from wtacrs.integrations.trainer import WtacrsCallback
from wtacrs.measure.step import measure_step
from wtacrs_experiments.config import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed; it is in the extra docs")

DOCS = ROOT / "docs"
SHOWN = [getattr(wtacrs, name) for name in wtacrs.__all__]
COPIED = ("docs", "results/figures", "results/tables", "wtacrs_experiments/reports")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "mkdocs.yml")


@pytest.fixture
def copied(tmp_path):
    """All that the pages are made of, to be broken."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in (*FILES, "results/LOG.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    for folder in ("wtacrs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    return tmp_path


def build(root, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.mark.slow
def test_pages_build(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    assert 'src="results/figures/why.svg"' in first
    assert 'href="launchers/local.html"' in first
    assert (tmp_path / "site" / "results" / "figures" / "why.svg").is_file()
    assert (tmp_path / "site" / "examples" / "own_loop.py").is_file()
    fetched = set(re.findall(r'<(?:script|link)[^>]*"(https?://[^"]*)"', first))
    assert fetched == set()  # nothing is fetched from elsewhere


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "text", "message"),
    [
        ("docs/use.md", "[x](nothing.md)", "nothing.md"),
        ("docs/use.md", "[x](../results/nothing.md)", "nothing.md"),
        ("docs/use.md", "[x](results.md#nothing)", "#nothing"),
        ("docs/reference.md", "::: wtacrs.nothing", "wtacrs.nothing"),
        ("README.md", "[x](docs/nothing.md)", "nothing.md"),
    ],
)
def test_what_is_dead_ends_the_build(copied, page, text, message):
    with (copied / page).open("a") as file:
        file.write(f"\n{text}\n")
    done = build(copied, copied / "site")
    assert done.returncode != 0
    assert message in done.stderr


def leaves(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else leaves(value)


def test_every_page_is_in_the_contents():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    own = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert own == {*leaves(nav)} & own


def test_every_figure_has_its_paragraph():
    text = (DOCS / "figures.md").read_text()
    figures = {path.name for path in (ROOT / "results" / "figures").glob("*.svg")}
    assert {*re.findall(r"results/figures/(\w+\.svg)", text)} == figures


def test_every_room_is_in_the_house():
    page, picture = (DOCS / "architecture.md").read_text(), (DOCS / "house.svg").read_text()
    for house in ("wtacrs", "wtacrs_experiments"):
        for room in (path.parent.name for path in (ROOT / house).glob("*/__init__.py")):
            assert f"`{house}/{room}/`" in page
            assert f">{room}/<" in picture


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference.md").read_text()
    for name in {*wtacrs.__all__} - {"ESTIMATORS", "PRESETS"}:  # which have pages of their own
        assert f"::: wtacrs.{name}\n" in text


@pytest.mark.parametrize(
    "of", [*filter(callable, SHOWN), WtacrsCallback, measure_step], ids=lambda of: of.__name__
)
def test_docstrings_name_parameters_that_there_are(of):
    """mkdocs cannot say so, since one line may tell of two."""
    told = re.search(r"Args:\n(.*?)(\n\n|\Z)", inspect.getdoc(of) or "", re.DOTALL)
    names = re.findall(r"^    (\w[\w, ]*):", told[1], re.MULTILINE) if told else []
    known = {*inspect.signature(of).parameters}
    assert {name for line in names for name in line.split(", ")} <= known
