"""The audit of published records: each way in which one cannot be believed has its line."""

import json
import subprocess

import pytest

from wtacrs_experiments.records import audit
from wtacrs_experiments.records.audit import KINDS, Records, kind_of
from wtacrs_experiments.records.code import PLANNER, code_hash

RUN, PLAN, BENCH = "results/ablation/a.json", "results/plan/step-a.json", "results/bench/a.json"


@pytest.fixture
def git(tmp_path):
    def run(*arguments, cwd=tmp_path):
        user = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *user, *arguments], cwd=cwd, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run


@pytest.fixture
def repository(tmp_path, git):
    """Two commits: an empty one, and one with the code; then a record of each kind, all good."""
    git("init")
    git("commit", "--allow-empty", "-m", "nothing yet")
    for path in (f"wtacrs_experiments/{files[0]}" for _, files in KINDS.values()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"# {path}\n")
    (tmp_path / "conf/memory").mkdir(parents=True)
    (tmp_path / "conf/memory/lean.yaml").write_text("name: lean\n")
    git("add", ".")
    git("commit", "-m", "code")
    provenance = {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False}
    groups = ("task", "model", "tuning", "estimator")
    config = {**{group: {"name": "any"} for group in groups}, "budget": 0.3, "seed": 0}
    config["memory"] = {"name": "lean"}
    contents = {
        RUN: {"status": "completed", "config": config},
        PLAN: {"config": config, "memory": {}, "flops": 1, "relative_flops": 1.0},
        BENCH: {"ratio_to_full": {}},
        "results/plan/index-table2.json": {"T5-Base": {"Full": "step-a.json"}},
    }
    contents[PLAN]["code"] = code_hash(PLANNER, tmp_path)
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        whole = content if "index" in path else {**content, "provenance": provenance}
        (tmp_path / path).write_text(json.dumps(whole))
    git("add", ".")
    git("commit", "-m", "records")
    return tmp_path


@pytest.fixture
def change(repository):
    """Changes a record and gives the failures there are then."""

    def write(path, **changes):
        record = json.loads((repository / path).read_text())
        record["provenance"] |= changes.pop("provenance", {})
        (repository / path).write_text(json.dumps(record | changes))
        return [*Records(repository).failures()]

    return write


def test_good_records_have_no_failure(repository):
    records = Records(repository)
    assert [*records.failures()] == []
    assert len(records.paths) == 4
    assert records.not_here == set()
    assert records.stale == []


def test_a_plan_of_code_that_has_changed_is_stale_and_no_failure(repository):
    (repository / "wtacrs_experiments/plan/rehearsal.py").write_text("# changed\n")
    records = Records(repository)
    assert [*records.failures()] == []
    assert records.stale == [repository / PLAN]


@pytest.mark.parametrize("path", [RUN, PLAN, BENCH])
@pytest.mark.parametrize(
    ("provenance", "reason"),
    [
        ({"git_dirty": True}, "made from a tree that was not clean"),
        ({"git_dirty": None}, "not known to be of a clean tree"),
        ({"git_commit": None}, "names no commit"),
        ({"git_commit": "f" * 40}, "commit ffffffff is not in the history of this one"),
    ],
)
def test_provenance(path, provenance, reason, change):
    assert change(path, provenance=provenance) == [f"{path}: {reason}"]


@pytest.mark.parametrize("path", [RUN, PLAN, BENCH])
def test_commit_holds_the_code(path, change, git):
    first = git("rev-list", "--max-parents=0", "HEAD")
    failures = change(path, provenance={"git_commit": first})
    assert failures[0] == f"{path}: commit {first[:8]} does not hold the code of a {kind_of_(path)}"
    yaml = f"{path}: commit {first[:8]} has no conf/memory/lean.yaml"
    assert (yaml in failures) == (path != BENCH)
    other = [failure for failure in failures if "holds other code" in failure]
    assert len(other) == (path == PLAN)


def kind_of_(path):
    return {RUN: "run", PLAN: "step", BENCH: "bench"}[path]


def test_code_of_a_plan_is_that_of_its_commit(change):
    (failure,) = change(PLAN, code="0" * 12)
    assert failure.endswith("holds other code than what made it (000000000000)")


def test_a_commit_of_another_branch_is_none(change, git):
    tree = git("rev-parse", "HEAD^{tree}")
    other = git("commit-tree", tree, "-m", "elsewhere")
    (failure,) = change(RUN, provenance={"git_commit": other})
    assert failure.endswith("is not in the history of this one")


@pytest.mark.parametrize(
    ("path", "text", "part"),
    [
        (RUN, "{", "not valid JSON"),
        (RUN, '{"status": NaN}', "NaN is none of JSON's numbers"),
        (RUN, "[]", "no record of a run: it has no status, config, provenance"),
        (PLAN, '{"config": {}}', "no record of a step: it has no memory, flops"),
        (BENCH, "{}", "no record of a bench: it has no provenance"),
        ("results/plan/index-table2.json", "{}", "no index names it"),
        (
            "results/plan/index-table2.json",
            '{"T5-Base": {"Full": "step-a.json", "LoRA": "step-b.json"}}',
            "names step-b.json, which is not there",
        ),
    ],
)
def test_content(path, text, part, repository):
    (repository / path).write_text(text)
    (failure,) = Records(repository).failures()
    assert part in failure


def test_status_is_one_of_a_run(change):
    (failure,) = change(RUN, status="done")
    assert failure.startswith(f"{RUN}: no record of a run: status 'done' is none of")


def test_what_is_not_committed_is_not_published(repository):
    (repository / "results/ablation/new.json").write_text("{")
    assert [*Records(repository).failures()] == []


def test_a_shallow_clone_says_what_it_lacks(repository, git, tmp_path):
    clone = tmp_path / "clone"
    git("clone", "--depth", "1", f"file://{repository}", str(clone))
    records = Records(clone)
    assert [*records.failures()] == []
    assert records.not_here == {json.loads((clone / RUN).read_text())["provenance"]["git_commit"]}


def test_kinds_go_by_place(tmp_path):
    assert kind_of(tmp_path / "plan" / "batches-a.json") == "batches"
    assert kind_of(tmp_path / "plan" / "step-a.json") == "step"
    assert kind_of(tmp_path / "table1" / "a.json") == "run"
    assert audit.GROUPS[-1] == "memory"
