"""Every example runs as a stranger would run it, offline, and shows what it says."""

import json
import re

import pytest

from tests.stranger import run
from wtacrs_experiments.config import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SHOWN = {  # a part of what each prints
    "own_loop": r"accuracy: plain 0\.\d{3}, leanest at 0\.3 0\.\d{3}",
    "trainer": r"resumed bit for bit: True",
    "sft": r"LoRA  leanest +loss \d\.\d{3} -> \d\.\d{3}",
    "lora": r"leanest +peak +\d+\.\d MiB",
    "planner": r"leanest +peak +\d\.\d\d GiB",
    "estimators": r"\d+ winners of 51 kept rows",
}
# The cells of a notebook, one after the other; what they draw is not shown.
CELLS = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
space = {}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
"""


def losses(printed):
    """First and last of each run that sft.py tells of."""
    return [
        (float(first), float(last)) for first, last in re.findall(r"loss (\S+) -> (\S+)", printed)
    ]


def test_all_are_here():
    assert {path.stem for path in (*SCRIPTS, *NOTEBOOKS)} == {*SHOWN}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script, tmp_path):
    if script.stem == "sft":
        pytest.importorskip("trl", reason="trl is not installed; it is in the extra dev")
    printed = run(tmp_path, script)
    assert re.search(SHOWN[script.stem], printed)
    assert list(tmp_path.glob("*")) in ([], [tmp_path / "hf"])  # it leaves nothing behind
    if script.stem == "own_loop":
        plain, sampled = map(float, re.findall(r"0\.\d{3}", printed)[:2])
        assert plain > 0.5  # of ten digits
        assert sampled > plain - 0.1
    if script.stem == "sft":
        assert len(losses(printed)) == 4
        assert all(last < first for first, last in losses(printed))
    if script.stem in ("lora", "planner"):
        peaks = dict(re.findall(r"(\w+) +peak +(\d+\.\d+)", printed))
        assert float(peaks["leanest"]) < float(peaks["checkpoint"]) < float(peaks["plain"])


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook, tmp_path):
    printed = run(tmp_path, "-c", CELLS, notebook)
    assert re.search(SHOWN[notebook.stem], printed)
    rows = re.findall(r"(\w+) +one draw +(\S+) +mean of 256 +(\S+)", printed)
    for name, one, mean in rows:
        unbiased = float(mean) < float(one) / 50
        assert unbiased == (name != "deterministic")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_outputs(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
