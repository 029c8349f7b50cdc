"""Look up what a run's settings leave open: a commit, a file's hash, what a model's files say."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from helpers.config import Experiment, on_hub
from helpers.files import data_sha256, folder_sha256
from helpers.hub import MODEL_FILES, dataset_commit, fetch_model
from helpers.packages import packaged_file

LONGEST = 256  # tokens that are read of a text unless max_seq_length says otherwise


def resolve(experiment: Experiment, commits: dict[str, str]) -> Experiment:
    """Fill in what an experiment leaves open: commits, a file's hash, dimensions, a length.

    Commits are taken from ``commits``, by name and revision, and new ones are added to it.

    Raises:
        ValueError: a revision isn't the file's SHA-256; the model can't be trained here, doesn't
            say its dimensions, or has none to cut.
        FileNotFoundError, HubError: the model or dataset isn't here, or can't be had from the Hub.
    """
    changes = {}
    if experiment.dataset_is_file:
        changes["dataset_revision"] = data_sha256(Path(experiment.dataset))
    elif experiment.dataset_on_hub:
        asked = experiment.dataset, experiment.dataset_revision
        changes["dataset_revision"] = _commit(*asked, dataset_commit, commits)
    if Path(experiment.model).is_absolute():
        folder = Path(experiment.model)
        files = (path for pattern in MODEL_FILES for path in folder.rglob(pattern))
        changes["model_revision"] = folder_sha256(folder, files)
    elif on_hub(experiment.model):
        asked = experiment.model, experiment.model_revision
        changes["model_revision"] = _commit(*asked, lambda *at: fetch_model(*at).name, commits)
    for name, revision in changes.items():
        given, source = getattr(experiment, name), getattr(experiment, name.split("_")[0])
        if given not in (None, revision) and Path(source).is_absolute():  # a reader's own
            raise ValueError(
                f"{name} is {given!r}, but {source} has the SHA-256 {revision}: it isn't what you "
                "named, or has changed"
            )
    unknown = None in (experiment.full_dim, experiment.max_seq_length)
    if unknown or not on_hub(experiment.model):
        folder = model_folder(experiment.model, changes.get("model_revision"))
        dim = embedding_dimension(folder)
        changes["full_dim"] = experiment.full_dim or dim
        if changes["full_dim"] is None:
            raise ValueError(
                f"{experiment.model} doesn't say how many dimensions it has: set full_dim to that"
            )
        changes["max_seq_length"] = experiment.max_seq_length or longest_text(folder)
    return experiment.replace(**changes)


def _commit(
    name: str, revision: str | None, ask: Callable[[str, str | None], str], commits: dict[str, str]
) -> str:
    if re.fullmatch("[0-9a-f]{40}", revision or ""):
        return revision
    key = f"{name}@{revision or 'main'}"
    if key not in commits:
        commits[key] = ask(name, revision)
    return commits[key]


def model_folder(model: str, revision: str | None) -> Path:
    """Return the folder with a model's files, downloaded if needed.

    Raises ValueError, FileNotFoundError or HubError if it isn't there, or isn't the expected one.
    """
    if on_hub(model):
        return fetch_model(model, revision)
    if model.startswith("pypi:"):
        return packaged_file(model.removeprefix("pypi:")).parent
    if not Path(model).is_dir():
        raise FileNotFoundError(f"there is no model folder {model}")
    return Path(model)


def embedding_dimension(folder: Path) -> int | None:
    """Read from a saved model's configuration how many dimensions its embeddings have.

    None if it doesn't say. Raises ValueError if the model can't be trained here.
    """
    sizes = ("out_features", "embedding_dimension", "word_embedding_dimension")
    sizes += ("hidden_size", "dim", "d_model", "n_embd")  # as the kinds of transformers call it
    modules = _read(folder / "modules.json") or []
    if modules and (kind := modules[0]["type"].rpartition(".")[2]) != "Transformer":
        raise ValueError(
            f"the model in {folder} begins with {kind}: expected a transformer; other models, such "
            "as static embeddings and routers, can't be trained here"
        )
    for path in [*(folder / module["path"] for module in reversed(modules)), folder]:
        configuration = _read(path / "config.json") or {}
        if dim := next((configuration[name] for name in sizes if name in configuration), None):
            return dim
    return None


def longest_text(folder: Path) -> int:
    """Return how many tokens a saved model reads of a text, at most 256."""
    modules = _read(folder / "modules.json") or [{"path": ""}]
    files = {path.name: _read(path) for path in (folder / modules[0]["path"]).glob("*config.json")}
    names = ("max_seq_length", "model_max_length", "max_position_embeddings")
    limits = [LONGEST, *(said[name] for said in files.values() for name in names if name in said)]
    own = files.get("config.json", {})
    if own.get("pad_token_id") == 1:  # RoBERTa's kin count positions from the padding's on
        limits.append(own.get("max_position_embeddings", 0) - 2)
    return min(limit for limit in limits if limit and limit > 0)


def _read(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
