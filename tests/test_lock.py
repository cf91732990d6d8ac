"""The lock: a sum for each file, the versions that are installed, nothing that nobody asks for."""

import re
import tomllib
from importlib.metadata import distribution, version

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from wtacrs_experiments.config import ROOT

SUMS = r"((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)(?: ; (.+?))?" + SUMS, re.M)


def entries(name):
    """Package -> its version, whether it is for this machine, and its sums."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {
        package: (pinned, not marker or Marker(marker).evaluate(), sums.split())
        for package, pinned, marker, sums in ENTRY.findall(text)
    }
    assert len(found) == len(re.findall("^[^ #]", text, re.M))  # no line is anything else
    return found


LOCKED, CUDA = (entries(f"requirements{which}.lock") for which in ("", "-cuda"))


def asked_for(package, extras=frozenset()):
    """The packages that an installed one asks for, with their extras."""
    for text in distribution(package).requires or []:
        wanted = Requirement(text)
        there = [{"extra": extra} for extra in ("", *extras)]
        if wanted.marker is None or any(wanted.marker.evaluate(env) for env in there):
            yield canonicalize_name(wanted.name), frozenset(wanted.extras)


def test_every_locked_package_is_asked_for_by_something():
    extras = re.search("^EXTRAS = (.*)$", (ROOT / "Makefile").read_text(), re.M)
    project = frozenset(extras[1].split())
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert declared["optional-dependencies"].keys() - project == {"ray"}
    seen, to_see = set(), [("wtacrs", project)]
    while to_see:
        package, extras = to_see.pop()
        for found in {*asked_for(package, extras)} - seen:
            seen.add(found)
            if found[0] not in CUDA:
                to_see.append(found)
    wanted = {package for package, _ in seen}
    here = {package for package, (_, is_here, _) in LOCKED.items() if is_here}
    built_with = {"setuptools"}  # what has no wheel, and the project itself
    assert here - wanted - built_with == set()
    assert wanted - here - CUDA.keys() == set()


def test_what_is_locked_is_installed():
    here = {package: pinned for package, (pinned, is_here, _) in LOCKED.items() if is_here}
    assert {package: version(package).partition("+")[0] for package in here} == here


def test_torch_has_the_sums_of_builds_with_cuda_and_without():
    _, _, sums = LOCKED["torch"]
    without = re.search(
        r"^TORCH_CPU = (.*?[0-9a-f])$", (ROOT / "Makefile").read_text(), re.M | re.S
    )
    cpu = {f"--hash=sha256:{one}" for one in re.findall("[0-9a-f]{64}", without[1])}
    assert len(cpu) == 6
    assert cpu < {*sums}


def test_what_a_build_with_cuda_needs_lies_apart():
    assert not LOCKED.keys() & CUDA.keys()
    assert all(re.match("cuda|nvidia|triton", package) for package in CUDA)
