"""The claim of a run that is under way."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.records import claims
from wtacrs_experiments.records.claims import UnderWay, claimed, is_alive, read_claim


@pytest.fixture
def record(tmp_path):
    return tmp_path / "runs" / "a-b0.3.json"


def files(record):
    return sorted(path.name for path in record.parent.iterdir())


def test_a_claim_is_there_while_the_run_is(record):
    path = record.with_suffix(".running")

    def run():
        with claimed(record, {"seed": 3}):
            said = read_claim(path)
            assert (said["config"], said["pid"]) == ({"seed": 3}, os.getpid())
            assert is_alive(said, path)
            raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        run()
    assert files(record) == [claims.LOCK]
    assert read_claim(path) is None


def test_a_run_that_another_process_carries_out_is_left_to_it(record):
    with claimed(record, {}):
        before = record.with_suffix(".running").read_bytes()
        with pytest.raises(UnderWay, match=rf"process {os.getpid()} on .* runs it since 20"):
            claimed(record, {}).__enter__()
        assert record.with_suffix(".running").read_bytes() == before


KILLED = """
import os, sys
from pathlib import Path
from wtacrs_experiments.records.claims import claimed
with claimed(Path(sys.argv[1]), {}):
    os._exit(9)
"""


def test_the_claim_of_a_killed_process_is_taken_over(record):
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(record)], env=paths)
    assert ended.returncode == 9
    left = read_claim(record.with_suffix(".running"))
    assert not is_alive(left, record.with_suffix(".running"))
    with claimed(record, {}) as claim:
        assert read_claim(claim.path)["pid"] == os.getpid()


def test_what_a_killed_process_was_writing_is_removed(record):
    """Its record, its claim and its model, which saving.py writes beside the record."""
    record.parent.mkdir()
    left = [record.parent / f".{name}.x1" for name in (record.name, f"{record.stem}.running")]
    for path in left:
        path.write_text("half of it")
    left.append(record.parent / f".{record.stem}.x1")
    (left[-1] / record.stem).mkdir(parents=True)
    (left[-1] / record.stem / "model.safetensors").write_text("half of it")
    other = record.parent / f".{record.stem}-of-another.x1"
    other.mkdir()
    with claimed(record, {}):
        assert [path for path in left if path.exists()] == []
    assert other.exists()


def test_the_number_of_a_process_that_is_another_by_now(record):
    with claimed(record, {}) as claim:
        said = read_claim(claim.path)
        assert not is_alive(said | {"process_started": said["process_started"] - 100}, claim.path)


def test_the_claim_of_another_machine_lives_as_long_as_it_is_touched(record, monkeypatch):
    monkeypatch.setattr(claims, "TOUCH_SECONDS", 0.02)
    with claimed(record, {}) as claim:
        elsewhere = read_claim(claim.path) | {"host": "another machine"}
        assert is_alive(elsewhere, claim.path)
        long_ago = time.time() - claims.STALE_SECONDS - 10
        os.utime(claim.path, (long_ago, long_ago))
        deadline = time.monotonic() + 10
        while claim.path.stat().st_mtime == long_ago and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_alive(elsewhere, claim.path)
    claim.path.write_text("{}")
    os.utime(claim.path, (long_ago, long_ago))
    assert not is_alive(elsewhere, claim.path)


def test_what_another_machine_has_taken_over_stays_its_own(record):
    """This one slept longer than a claim lives without a touch."""
    path = record.with_suffix(".running")
    with claimed(record, {}) as claim:
        other = read_claim(path) | {"host": "elsewhere"}
        path.write_text(json.dumps(other))
        os.utime(path, (1, 1))
        claim.touch()
        claim.release_reserve()
    assert read_claim(path) == other
    assert path.stat().st_mtime == 1


def test_a_folder_that_is_gone_does_not_hide_how_the_run_ended(record):
    def run():
        with claimed(record, {}):
            shutil.rmtree(record.parent)
            raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        run()


def test_of_many_that_claim_at_once_one_does(record):
    """Of a stale claim, too: each process of this test has it for a moment, one after the other."""
    code = KILLED.replace("os._exit(9)", "import time; time.sleep(3)")
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(_):
        return subprocess.run(
            [sys.executable, "-c", code, str(record)], env=paths, capture_output=True, text=True
        )

    with ThreadPoolExecutor(6) as pool:
        ended = [*pool.map(start, range(6))]
    failed = [one.stderr for one in ended if one.returncode]
    assert len(failed) == 5
    assert all("UnderWay" in text for text in failed)


def test_the_reserve_is_let_go(record):
    with claimed(record, {"seed": 3}) as claim:
        assert claim.path.stat().st_size > claims.RESERVE
        claim.release_reserve()
        assert claim.path.stat().st_size < 1000
        assert read_claim(claim.path)["config"] == {"seed": 3}


def test_a_disk_without_room_for_a_record(record, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    real, calls = os.fsync, []

    def second(handle):
        calls.append(handle)
        return full(handle) if len(calls) == 2 else real(handle)

    monkeypatch.setattr(claims.os, "fsync", second)
    with pytest.raises(OSError, match="No space left"):
        claimed(record, {}).__enter__()
    assert files(record) == [claims.LOCK]


@pytest.mark.parametrize("content", ["", "{", "3", "{}", "[1]"])
def test_what_is_no_claim_says_nothing(content, tmp_path):
    (tmp_path / "a.running").write_text(content)
    assert read_claim(tmp_path / "a.running") is None
