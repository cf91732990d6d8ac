"""Every command on a page is one that there is: it composes, or names what exists. The quick ones
of README run."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest

from tests.docs.pages import commands
from tests.stranger import run
from wtacrs_experiments import cli
from wtacrs_experiments.config import ROOT, PlanConfig, RunConfig, as_record, sweep
from wtacrs_experiments.config.arguments import check_arguments, grid
from wtacrs_experiments.config.command import command
from wtacrs_experiments.config.compose import compose
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.records.planned import read_planned

COMMANDS = commands()
PYTHON = ("python", ".venv/bin/python")
FOREIGN = {"git": "clone", "cd": "wtacrs", "source": ".venv/bin/activate"}
FOREIGN |= {"export": "GLUE_DIR=~/glue", "pip": "install"}
LAUNCHERS = {"torchrun": [], "accelerate": ["launch"]}  # and the words before their options
# What the reader of a page brings along; tests/docs/test_extend.py writes the files and runs them.
MINE = ("--config-dir=mine", "model=small_bert", "task=reviews", "memory=quick")
MY_FOLDER, MY_PLUGIN = "model.path=/models/", "plugins=[my_estimators]"


@pytest.fixture(autouse=True)
def _hub_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setattr(sweep, "find_spec", lambda name: name)  # a page may name any extra


def composes(arguments):
    """The words after ``python run.py`` give a config, at each point of a grid."""
    mode, left = command(arguments)
    texts = [word for word in left if not word.startswith("-")]
    if mode == "plan":
        assert settings([text for text in texts if not text.startswith("mode=")])
        return
    check_arguments(RunConfig, texts, sweeps="-m" in left)
    for _, point in grid(texts):
        assert compose(RunConfig, point)


def is_of_make(words):
    """Targets and variables: make itself says, without doing any of it."""
    done = subprocess.run(
        ["make", "--dry-run", "-o", ".venv/.installed", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def is_of_cli(words, monkeypatch):
    """argparse takes the words; what they read may be empty."""
    name, *rest = words
    if name in ("run", "plan"):
        return composes([*(["mode=plan"] if name == "plan" else []), *rest])
    assert name in cli.COMMANDS
    monkeypatch.setattr(sys, "argv", ["wtacrs"])
    assert cli.main([name, *rest]) in (0, 1)  # a folder without records is 1, bad usage 2
    return None


def is_known(words, monkeypatch):
    """Hold a command against what there is."""
    if words[0] in LAUNCHERS:
        assert find_spec({"torchrun": "torch", "accelerate": "accelerate"}[words[0]])
        at = words.index("run.py")
        assert all(word.startswith("-") for word in words[1 + len(LAUNCHERS[words[0]]) : at])
        composes(words[at + 1 :])
    elif words[0] in PYTHON and words[1] == "run.py":
        composes(words[2:])
    elif words[0] in PYTHON and words[1] == "-m":
        assert find_spec(words[2])
    elif words[0] in PYTHON:
        assert (ROOT / words[1]).is_file()
        assert len(words) == 2
    elif words[0] == "wtacrs":
        is_of_cli(words[1:], monkeypatch)
    elif words[0] == "make":
        is_of_make(words[1:])
    else:
        assert words[1] == FOREIGN[words[0]]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: str(value)[:60])
def test_command_is_one_that_there_is(page, words, monkeypatch):
    is_known(without_own(words), monkeypatch)


def without_own(words):
    """Without what the page's reader brings: files of groups, a folder with a model, a plugin."""
    kept = [word for word in words if not word.startswith(MY_FOLDER)]
    if MINE[0] in kept:
        kept = [word for word in kept if word not in MINE]
    if MY_PLUGIN in kept:
        kept = [word.replace("simple,", "") for word in kept]
    return kept


@pytest.mark.parametrize(
    "wrong",
    [
        "python run.py model=minilm tsak=rte",
        "python run.py budget=0.1,0.3",
        "python run.py mode=plan model=minilm fits=24",
        "torchrun --nproc-per-node=4 run.py task=nothing",
        "python -m wtacrs_experiments.reports.nothing",
        "python examples/nothing.py",
        "wtacrs tables outputs/runs",
        "wtacrs table outputs/runs --protocl paper",
        "make demos",
        "conda install wtacrs",
    ],
)
def test_a_wrong_one_is_seen(wrong, monkeypatch):
    with pytest.raises((Exception, SystemExit)) as seen:
        is_known(wrong.split(), monkeypatch)
    assert getattr(seen.value, "code", 2) == 2


def test_targets_of_make_in_the_text():
    """Of `make x` in a sentence, too."""
    for page, _ in COMMANDS:
        text = (ROOT / page).read_text()
        for words in {found.strip() for found in re.findall(r"`make ([a-z0-9 -]+)`", text)}:
            is_of_make(words.split())


def test_extras_are_those_of_the_package():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "docs" / "installing.md").read_text()
    assert {*re.findall(r"\.\[(\w+)\]", text)} <= {*known}


def test_families_are_counted():
    table = (ROOT / "docs" / "capabilities.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert f"each of {len(rows) - 1} families" in (ROOT / "README.md").read_text()


def of_readme(*begin):
    """The one command of README that begins so."""
    (words,) = [w for page, w in COMMANDS if page == "README.md" and w[: len(begin)] == [*begin]]
    return words


def test_second_command_of_readme_is_a_row_of_its_table():
    """Its plan, which takes a minute, is the record that the row shows."""
    _, words = command(of_readme(".venv/bin/python", "run.py", "mode=plan")[2:])
    asked = as_record(compose(PlanConfig, words))
    rows = read_planned(ROOT / "results" / "plan", "decoders").values()
    (record,) = [one for row in rows for one in row.values() if one["config"] == asked]
    peak = f"{record['memory']['peak_bytes'] / 2**30:.2f}"
    shown = re.search(r"leanest@0\.3 +\|[^|]*\| +(\S+) ·", (ROOT / "README.md").read_text())
    assert shown[1] == peak


@pytest.mark.slow
def test_sweep_status_and_table_run(tmp_path):
    """README's sweep at the size of a test: three records, a status and a table."""
    sweep = of_readme("python", "run.py", "-m")[1:]
    small = {"model": "digits_tiny", "task": "digits", "seed": "0"}
    chosen = [f"{w.split('=')[0]}={small.get(w.split('=')[0], w.partition('=')[2])}" for w in sweep]
    words = [word if "=" in before else before for before, word in zip(sweep, chosen, strict=True)]
    tiny = ("training.max_steps=2", "task.max_train_rows=16", "measure.memory=false")
    run(tmp_path, ROOT / words[0], *words[1:], *tiny)
    assert len(list((tmp_path / "outputs" / "runs").glob("*.json"))) == 3
    for name, shown in (("status", "3 completed"), ("table", "wtacrs@0.3"), ("ls", "models")):
        words = of_readme("wtacrs", name)
        assert shown in run(tmp_path, "-m", "wtacrs_experiments.cli", *words[1:])


def test_all_that_there_is_to_choose_is_on_the_page():
    page = (ROOT / "docs" / "experiments.md").read_text()
    for group in ("model", "task", "tuning", "memory", "estimator"):
        (row,) = re.findall(rf"^\| `{group}` \| (.*) \|$", page, re.MULTILINE)
        names = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert names <= {*re.findall(r"`([a-z0-9_]+)`", row)}, group
    for name in cli.COMMANDS:
        assert f"`{name}`" in page
