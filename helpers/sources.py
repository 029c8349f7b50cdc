"""Look up what a run's settings leave open: a commit, a file's hash, a model's size."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.config import Experiment, on_hub
from helpers.files import data_sha256, folder_sha256
from helpers.hub import MODEL_FILES, dataset_commit, fetch_model
from helpers.packages import packaged_file

if TYPE_CHECKING:  # it takes seconds, and most runs start without it
    from sentence_transformers import SentenceTransformer

LONGEST = 256  # tokens that are read of a text unless max_seq_length says otherwise


def resolve(experiment: Experiment, commits: dict[str, str]) -> Experiment:
    """Fill in what an experiment leaves open: commits, a file's hash, dimensions, a length.

    Commits are taken from ``commits``, by name and revision, and new ones are added to it.

    Raises:
        ValueError: a revision isn't the file's SHA-256; the model can't be loaded or trained here,
            or has no dimensions to cut.
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
    if unknown or not on_hub(experiment.model):  # is it here?
        folder = model_folder(experiment.model, changes.get("model_revision"))
    if unknown:
        model = open_model(folder, experiment.model)
        model.truncate_dim = None  # it may have been saved with one
        limits = [LONGEST, model.max_seq_length, positions(model)]
        changes["full_dim"] = experiment.full_dim or model.get_embedding_dimension()
        changes["max_seq_length"] = experiment.max_seq_length or min(filter(None, limits))
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


def open_model(folder: Path, name: str, device: str = "cpu", **options) -> "SentenceTransformer":
    """Load a model's files in float32; ``options`` are of transformers.

    Raises ValueError if it can't be read, needs code of its own, or can't be trained here.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    try:
        # A bf16 or fp16 file would be loaded, and trained, as it is.
        options |= {"dtype": "float32"}
        model = SentenceTransformer(str(folder), device=device, model_kwargs=options)
    except Exception as error:  # of a damaged folder, a library may raise anything
        if "trust_remote_code" not in str(error):
            raise ValueError(
                f"{name} can't be loaded by sentence-transformers: {type(error).__name__}: {error}"
            ) from error
        raise ValueError(
            f"{name} needs code of its own (trust_remote_code), which would run whatever its "
            "folder holds. That isn't supported: take another model"
        ) from error
    if not isinstance(model[0], Transformer):
        raise ValueError(
            f"{name} begins with {type(model[0]).__name__}: expected a transformer; other models, "
            "such as static embeddings and routers, can't be trained here"
        )
    return model


def positions(model: "SentenceTransformer") -> int | None:
    """Return how many tokens a model has positions for; None if no table of them limits it."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            # RoBERTa's kin count from the place after the padding's.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None
